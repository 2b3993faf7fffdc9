"""Models in memory: the ONNX zygote, the process that has loaded each, and the workers.

    ONNX zygote      ONNX Runtime, never a model
      model          forked for each recipe, in the sandbox before it reads the model
        worker       forked from a model of one thread on the CPU: a few ms, weights shared

Any other model starts threads or drives a device, which no fork copies: its process is the worker.
A model that no instance uses stays for a while, for a `start` that follows a `deploy` or a restart.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from device_agent.executors.children import Child, Recipe
from device_agent.executors.contract import DIGEST_PREFIX
from device_agent.executors.link import Link, Reply
from device_agent.executors.process import PROGRAMS, Process
from device_agent.executors.remote import check_failure, failed, load_frame, log
from protocols.errors import Blame, EnvironmentFailure
from protocols.messages.invocation import FailureCode

LOAD_TIMEOUT_S: Final = 60.0
"""How long a model may take to load."""
LOADS: Final = 8
"""How often a model is loaded for one worker when others take it, or its process ends."""
HUGE_PAGES: Final = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""What a run takes it takes in large pages, where the kernel has them: a third of the faults' time.
"""
SPARE_S: Final = 20.0
"""How long a model waits that no instance uses."""


class Models:
    """Every process of an ONNX executor."""

    def __init__(
        self,
        interpreter: str,
        empty: Path,
        frame: dict[str, Any],
        used: Callable[[], set[Recipe]],
        hung_up: Callable[[Child], None],
        died: Callable[[Child, str], None],
        on_idle: Callable[[], None],
        share: float = 0.0,
    ) -> None:
        """`frame` goes with every load; `used` says which recipes instances need.

        `share` of the machine's memory bounds all processes together, where the kernel lets it.

        `hung_up` hears of each worker's end, `died` why one died that nobody ended; `on_idle` that
        no model is here any more.
        """
        self._interpreter = interpreter
        self._empty = empty
        self._frame = frame
        self._used = used
        self._hung_up = hung_up
        self._died = died
        self._on_idle = on_idle
        self._share = share
        self._group = f"tona-models-{crc32(os.fsencode(empty.absolute())):08x}"
        self.zygote: Process | None = None
        self._forks = 0
        self._children: dict[int, Child] = {}
        self.loaded: dict[Recipe, Child] = {}
        self._loading: dict[Recipe, asyncio.Task[Child]] = {}
        self._burials: set[asyncio.Task[None]] = set()
        self._spare: Recipe | None = None
        self._spare_timer: asyncio.TimerHandle | None = None

    # Models.

    async def load(self, artifact: Path, recipe: Recipe) -> Child:
        """Have a model loaded and vetted; the process that did it. Raises ExecutorFailure."""
        model = self.loaded.get(recipe)
        if model is not None:
            return model
        task = self._loading.get(recipe)
        if task is None:
            task = asyncio.create_task(self._load(artifact, recipe))
            self._loading[recipe] = task
            task.add_done_callback(lambda done: self._was_loaded(recipe, done))
        # Shielded: it serves every instance that waits for it, not only this one.
        return await asyncio.shield(task)

    def _was_loaded(self, recipe: Recipe, task: asyncio.Task[Child]) -> None:
        del self._loading[recipe]
        if not task.cancelled() and task.exception() is None and task.result().link.open:
            self.loaded[recipe] = task.result()
            self.release(recipe)

    async def _load(self, artifact: Path, recipe: Recipe, *, forks: bool = True) -> Child:
        zygote = self._running_zygote()
        model = self._fork(zygote.link, self._model_hung_up)
        manifest = recipe.manifest
        frame = load_frame(manifest) | self._frame
        frame |= {
            "path": str(artifact),
            "digest": manifest.artifact.digest.removeprefix(DIGEST_PREFIX),
            "providers": recipe.providers,
            "threads": recipe.threads,
            "forks": forks and recipe.threads == 1,
            "carries": [(one.output, one.input) for one in manifest.carries],
        }
        try:
            reply = await model.ask(frame, LOAD_TIMEOUT_S)
            what = "loading the model: it took too much, or was killed"
            if not zygote.link.open:
                what = f"starting ONNX Runtime under {self._interpreter}; the log says why"
            model.loaded = check_failure(reply, what)
        except TimeoutError:
            model.kill()
            text = f"the model did not load within {LOAD_TIMEOUT_S:.0f} s: make it smaller"
            raise failed(FailureCode.LIMIT, Blame.USER, text) from None
        except BaseException:
            model.kill()
            raise
        model.pid = model.loaded.pid
        for remark in (model.loaded.note, *model.loaded.gaps):
            if remark:
                log.warning("model %s: %s", manifest.artifact.digest, remark)
        return model

    async def once(self, artifact: Path, recipe: Recipe) -> Child:
        """Return a process that has loaded a model for itself alone. Raises ExecutorFailure."""
        return await self._load(artifact, recipe, forks=False)

    async def worker(self, artifact: Path, recipe: Recipe) -> Child:
        """Return a process that can run calls of a model. Raises ExecutorFailure."""
        for _ in range(LOADS):
            model = await self.load(artifact, recipe)
            if self.loaded.get(recipe) is not model:
                # Somebody else took it, or it died since.
                continue
            if model.loaded is not None and model.loaded.forks:
                worker = self._fork(model.link, self._hung_up)
                worker.loaded = model.loaded
                return worker
            del self.loaded[recipe]
            if self._spare == recipe:
                self.spare(None)
            return model
        text = "the process that loads the model has ended each time: the log says why"
        raise failed(FailureCode.EXECUTOR, Blame.ENVIRONMENT, text, retryable=True)

    def spare(self, recipe: Recipe | None) -> None:
        """Keep this model for a while though no instance uses it, and no other."""
        if self._spare_timer is not None:
            self._spare_timer.cancel()
            self._spare_timer = None
        self._spare = recipe
        self._settle()
        if recipe is not None:
            loop = asyncio.get_running_loop()
            self._spare_timer = loop.call_later(SPARE_S, self.spare, None)

    def release(self, recipe: Recipe) -> None:
        """Keep a model for a while if no instance uses it."""
        if recipe in self.loaded and recipe not in self._used():
            self.spare(recipe)

    def _settle(self) -> None:
        """End the models that nobody needs."""
        used = self._used()
        for recipe, model in list(self.loaded.items()):
            if recipe not in used and recipe != self._spare:
                del self.loaded[recipe]
                model.kill()
        if self.idle:
            self._on_idle()

    @property
    def idle(self) -> bool:
        """Whether no model is here or on its way."""
        return not self.loaded and not self._loading

    # Processes.

    def _running_zygote(self) -> Process:
        if self.zygote is None:
            try:
                self.zygote = Process(
                    self._interpreter,
                    PROGRAMS / "onnx_zygote.py",
                    (str(self._empty), self._group, str(self._share)),
                    self._zygote_ended,
                    self._told,
                    HUGE_PAGES,
                )
            except EnvironmentFailure as error:
                raise failed(
                    FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
                ) from None
        return self.zygote

    def _fork(self, parent: Link, hung_up: Callable[[Child], None]) -> Child:
        self._forks += 1
        try:
            child = Child(parent, self._forks, hung_up, self._told)
        except EnvironmentFailure as error:
            raise failed(
                FailureCode.EXECUTOR, Blame.ENVIRONMENT, str(error), retryable=True
            ) from None
        self._children[child.number] = child
        return child

    def _told(self, event: Reply) -> None:
        """Hear from a process what became of those that it forked."""
        if event.born is not None and (child := self._children.get(event.born[0])) is not None:
            child.pid = event.born[1]
        if event.exit is not None:
            number, reason = event.exit
            child = self._children.pop(number, None)
            if child is not None:
                self._bury(child, reason)

    def _model_hung_up(self, model: Child) -> None:
        for recipe, one in list(self.loaded.items()):
            if one is model:
                del self.loaded[recipe]
        self._hung_up(model)

    def _bury(self, child: Child, reason: str) -> None:
        """Take note of an end, and of those that the kernel ended with it."""
        child.link.finish()
        child.gone.set()
        if not child.unwanted:
            self._died(child, reason)
        why = f"went with the process of its model, which {reason}"
        self._bury_those_of(child.link, why, unwanted=child.unwanted)

    def _bury_those_of(self, parent: Link, reason: str, *, unwanted: bool = False) -> None:
        for number, child in list(self._children.items()):
            if child.parent is parent:
                self._children.pop(number, None)
                child.unwanted |= unwanted
                self._bury(child, reason)

    def _zygote_ended(self, zygote: Process) -> None:
        if self.zygote is zygote:
            self.zygote = None
        task = asyncio.create_task(self._bury_all(zygote))
        self._burials.add(task)
        task.add_done_callback(self._burials.discard)

    async def _bury_all(self, zygote: Process) -> None:
        await zygote.end()
        reason = f"went with the ONNX zygote, which {await zygote.exited()}"
        self._bury_those_of(zygote.link, reason)

    def end(self) -> None:
        """End every model; the zygote stays."""
        for recipe, model in list(self.loaded.items()):
            del self.loaded[recipe]
            model.kill()

    def retire(self) -> None:
        """End the zygote, and with it every process."""
        if self.zygote is not None:
            self.zygote.link.close()

    async def close(self) -> None:
        """End every process and wait for it."""
        for task in list(self._loading.values()):
            task.cancel()
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        self.spare(None)
        self.retire()
        while self._burials:
            await asyncio.gather(*self._burials)
