"""The bench of a node: runs a program in an instance that serves nobody, and takes the time.

Runs are as long as the executor says, as those in service are; starts are from here to the first
answer, less what a warm call takes. What the budget does not reach is left out.
"""

import asyncio
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from math import prod
from statistics import median
from typing import Final

from msgspec import structs

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.core.commands import RunCalibration
from device_agent.executors.door import (
    LINKED,
    Bytes,
    Done,
    Executor,
    ExecutorFailure,
    File,
    Setup,
    Value,
)
from device_agent.transfers import Transfers
from protocols.errors import Blame, EnvironmentFailure
from protocols.manifest import ITEM_BYTES, ArtifactRef, ExecutorKind
from protocols.messages.calibration import Calibrate, Calibrated, CalibrationInput, Measured
from protocols.messages.invocation import INLINE_MAX_BYTES

PREPARE_S: Final = 60.0
"""What fetching, compiling and vetting the program may take before its budget begins."""
REPEATS: Final = 7
"""Runs of each size at most."""
SIZE_SHARE: Final = 0.5
"""Of what is left of the budget, for the repeats of one size."""
CHUNK_BYTES: Final = 1 << 16
_INSTANCE: Final = "calibration~"
_LOWEST: Final = 0


class Bench:
    """Runs one calibration at a time."""

    def __init__(
        self,
        cache: ArtifactCache,
        blobs: BlobFolder,
        transfers: Transfers,
        executor: Callable[[ExecutorKind], Executor],
    ) -> None:
        """`executor` returns that of a kind, or raises EnvironmentFailure."""
        self._cache = cache
        self._blobs = blobs
        self._transfers = transfers
        self._executor = executor
        self._work: asyncio.Task[Calibrated] | None = None
        self._reason = ""

    async def run(self, command: RunCalibration) -> Calibrated:
        """Measure a program; a calibration that is ended says why."""
        asked = command.asked
        self._reason = ""
        self._work = work = asyncio.create_task(self._calibration(command))
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError:
            work.cancel()
            raise
        finally:
            self._work = None
        if work.cancelled():
            return _refused(asked, self._reason, passing=True)
        return work.result()

    def end(self, reason: str) -> None:
        """End the calibration that runs."""
        if self._work is not None:
            self._reason = reason
            self._work.cancel()

    async def _calibration(self, command: RunCalibration) -> Calibrated:
        asked = command.asked
        manifest = asked.manifest
        samples = [one.sample for run in asked.runs for one in run if one.sample is not None]
        needed = [manifest.artifact, *manifest.beside, *samples]
        for one in needed:
            self._cache.pin(one.digest)
        measuring = _Measuring(asked, self._blobs)
        try:
            executor = self._executor(manifest.kind)
            setup = Setup(provider=asked.provider, priority=_LOWEST, tenant=command.tenant)
            async with asyncio.timeout(PREPARE_S):
                for one in needed:
                    await self._transfers.artifact(one, command.urls)
                # Once on each device: that is no part of a start.
                artifact = self._cache.path(manifest.artifact.digest)
                shared_bytes = executor.shared_bytes()
                await executor.deploy(artifact, manifest, setup)
            async with asyncio.timeout(asked.budget_ms / 1000):
                measuring.begin(shared_bytes)
                await self._measure(measuring, executor, setup)
        except TimeoutError:
            if not measuring.runs:
                return _refused(asked, "nothing of it was measured in time", passing=True)
        except ExecutorFailure as error:
            failed = error.failed
            return _refused(asked, failed.text, failed.blame, passing=failed.retryable)
        except (EnvironmentFailure, OSError) as error:
            return _refused(asked, str(error), passing=True)
        finally:
            for one in needed:
                self._cache.unpin(one.digest)
            self._transfers.trim()
        return measuring.found()

    async def _measure(self, measuring: "_Measuring", executor: Executor, setup: Setup) -> None:
        """Start from the form, run every size, wake from rest. Raises ExecutorFailure."""
        asked = measuring.asked
        # Another deadline than the task's makes it another recipe: nothing that serves is shared.
        deadline_ms = max(1, min(asked.manifest.limits.deadline_ms, asked.budget_ms) - 1)
        limits = structs.replace(asked.manifest.limits, deadline_ms=deadline_ms)
        manifest = structs.replace(asked.manifest, limits=limits)
        name = _INSTANCE + asked.number
        setup = structs.replace(setup, memory=name)
        artifact = self._cache.path(manifest.artifact.digest)
        files = {one.port: self._cache.path(one.artifact.digest) for one in manifest.constants}
        for one in manifest.modules:
            files[LINKED + one.name] = self._cache.path(one.artifact.digest)
        pinned: list[str] = []
        try:
            runs = [self._inputs(run, pinned) for run in asked.runs]
            began_s = time.monotonic()
            await executor.deploy(artifact, manifest, setup)
            await executor.start(name, artifact, manifest, files, setup)
            measuring.started_s = time.monotonic() - began_s
            for inputs in runs:
                await measuring.size(executor, name, inputs)
            stats = await executor.stats(name)
            if stats is not None:
                # A runtime that nobody here had needed before is part of what this one costs.
                brought = max(0, executor.shared_bytes() - measuring.shared_bytes)
                measuring.memory_bytes = stats.memory_bytes + brought
            await executor.rest(name, keep=True)
            stats = await executor.stats(name)
            measuring.held_bytes = stats.memory_bytes if stats is not None else None
            if measuring.runs:
                await measuring.wake(executor, name, runs[measuring.first])
        finally:
            await executor.stop(name)
            for digest in pinned:
                self._blobs.unpin(digest)

    def _inputs(self, run: tuple[CalibrationInput, ...], pinned: list[str]) -> dict[str, Value]:
        """Return the values of a run, the large ones as files. Raises OSError."""
        values: dict[str, Value] = {}
        for one in run:
            size = ITEM_BYTES[one.dtype] * prod(one.shape)
            if size <= INLINE_MAX_BYTES:
                data = bytes(size) if one.sample is None else self._sample(one.sample, size)
                values[one.port] = Bytes(one.dtype, one.shape, data)
                continue
            digest = one.sample.digest if one.sample is not None else _digest_of_zeros(size)
            self._blobs.pin(digest)
            pinned.append(digest)
            if not self._blobs.has(digest, size):
                self._lay(digest, size, one.sample)
            values[one.port] = File(one.dtype, one.shape, digest, size)
        return values

    def _sample(self, sample: ArtifactRef, size: int) -> bytes:
        with self._cache.path(sample.digest).open("rb") as content:
            return content.read(size)

    def _lay(self, digest: str, size: int, sample: ArtifactRef | None) -> None:
        """Lay a large value into the blob folder. Raises OSError."""
        part = self._blobs.part(digest)
        try:
            if sample is not None:
                shutil.copyfile(self._cache.path(sample.digest), part)
            else:
                with part.open("wb") as content:
                    content.truncate(size)
            part.replace(self._blobs.path(digest))
        finally:
            part.unlink(missing_ok=True)


class _Measuring:
    """What a calibration has found so far."""

    def __init__(self, asked: Calibrate, blobs: BlobFolder) -> None:
        self.asked = asked
        self._blobs = blobs
        self.ends_s = 0.0
        self.shared_bytes = 0
        """Of the executor's own processes, before."""
        self.runs: list[Measured] = []
        self.first = 0
        """Which of the runs was the first that gave an answer."""
        self.started_s = 0.0
        self.start_ms: float | None = None
        self.wake_ms: float | None = None
        self.memory_bytes: int | None = None
        self.held_bytes: int | None = None
        self._warm_s = 0.0
        self._tried = 0
        self._calls = 0
        self._failed = ""

    def begin(self, shared_bytes: int) -> None:
        """Take note that the program is prepared, and its budget begins."""
        self.shared_bytes = shared_bytes
        self.ends_s = time.monotonic() + self.asked.budget_ms / 1000

    async def size(self, executor: Executor, name: str, inputs: dict[str, Value]) -> None:
        """Run with inputs of one size, again and again; a size that is refused is left out."""
        at, self._tried = self._tried, self._tried + 1
        first = await self._call(executor, name, inputs)
        if first is None:
            return
        took: list[float] = []
        walls: list[float] = []
        until_s = time.monotonic() + SIZE_SHARE * max(0.0, self.ends_s - time.monotonic())
        while len(took) < REPEATS and (not took or time.monotonic() < until_s):
            found = await self._call(executor, name, inputs)
            if found is None:
                return
            took.append(found[0])
            walls.append(found[1])
        if not self.runs:
            self.first, self._warm_s = at, median(walls)
            self.start_ms = 1000 * max(0.0, self.started_s + first[1] - self._warm_s)
        size = sum(ITEM_BYTES[one.dtype] * prod(one.shape) for one in inputs.values())
        self.runs.append(Measured(size, median(took)))

    async def wake(self, executor: Executor, name: str, inputs: dict[str, Value]) -> None:
        """Run once more, after a rest."""
        found = await self._call(executor, name, inputs)
        if found is not None:
            self.wake_ms = 1000 * max(0.0, found[1] - self._warm_s)

    async def _call(
        self, executor: Executor, name: str, inputs: dict[str, Value]
    ) -> tuple[float, float] | None:
        """Return the run in ms and the whole call in s; None: it gave nothing."""
        self._calls += 1
        began_s = time.monotonic()
        left_ms = max(1, round(1000 * (self.ends_s - began_s)))
        result = await executor.invoke(name, str(self._calls), inputs, left_ms, _LOWEST)
        if isinstance(result, Done):
            for one in result.outputs.values():
                if isinstance(one, File):
                    self._blobs.drop(one.digest)
            return result.run_us / 1000, time.monotonic() - began_s
        self._failed = result.text
        return None

    def found(self) -> Calibrated:
        """Return what was found."""
        asked = self.asked
        if not self.runs:
            made_up = not any(one.sample for run in asked.runs for one in run)
            hint = "; give samples, it was run with zeros" if made_up else ""
            return _refused(asked, f"no run gave an answer: {self._failed}{hint}", Blame.USER)
        return Calibrated(
            asked.number,
            asked.anchor,
            asked.node,
            tuple(sorted(self.runs, key=lambda one: one.input_bytes)),
            self.start_ms,
            self.wake_ms,
            self.memory_bytes,
            self.held_bytes,
        )


def _refused(
    asked: Calibrate, reason: str, blame: Blame = Blame.ENVIRONMENT, *, passing: bool = False
) -> Calibrated:
    return Calibrated(
        asked.number, asked.anchor, asked.node, refused=reason, blame=blame, passing=passing
    )


def _digest_of_zeros(size: int) -> str:
    made, chunk = sha256(), bytes(CHUNK_BYTES)
    for _ in range(size // CHUNK_BYTES):
        made.update(chunk)
    made.update(chunk[: size % CHUNK_BYTES])
    return f"sha256:{made.hexdigest()}"
