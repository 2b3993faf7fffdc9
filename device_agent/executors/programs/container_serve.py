"""The work of the container host, as process 1 of its namespaces: `container_host.py` starts it.

Whichever thread is free reads the next frame and runs it, so a warm call changes no thread; one
that has something to do leaves another one listening, so that `stop` is always heard.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_cgroup as cgroup
    from device_agent.executors.programs import container_images as images
    from device_agent.executors.programs import container_runtime as runtimes
    from device_agent.executors.programs import container_space as space
    from device_agent.executors.programs import container_worker as workers
    from device_agent.executors.programs.checks import hold_described
    from device_agent.executors.programs.stream import Header, Refusal, Stream, to_the_end
else:
    import container_cgroup as cgroup
    import container_images as images
    import container_runtime as runtimes
    import container_space as space
    import container_worker as workers
    from checks import hold_described
    from stream import Header, Refusal, Stream, to_the_end

THREAD_STACK_BYTES: Final = 1 << 20
MAX_THREADS: Final = 256
"""Beyond them nobody may listen for a while; a node runs far fewer containers."""
MAX_FILES: Final = 1 << 16
"""That may be open: a container may well have us open folders in folders in its outputs."""
FILL_TIMEOUT_S: Final = 20.0
"""After it no further container is begun: with the last one the daemon is still patient."""
END_TIMEOUT_S: Final = 4.0
"""How long the end of an instance waits for its calls, which are told to stop."""
NOT_UNPACKED: Final = "not unpacked"
"""Text of the refusal after which the daemon unpacks and asks again."""


class Instance:
    """A loaded program and the workers that run its containers."""

    def __init__(self, runtime: runtimes.Runtime, program: workers.Program, name: str) -> None:
        self.program = program
        self.image = name
        self._runtime = runtime
        self._free: list[workers.Worker] = []
        self._all: list[workers.Worker] = []
        self._closing = 0
        self._changed = threading.Condition()
        self._ended = False

    def add(self, number: int, prefix: str, token: str) -> workers.Worker:
        """Have one more worker, which is not free yet. Raises OSError."""
        worker = workers.Worker(self._runtime, self.program, number, prefix, token)
        with self._changed:
            self._all.append(worker)
        return worker

    def lacking(self) -> int:
        """Return how many workers there are too few."""
        with self._changed:
            return max(0, self.program.replicas - len(self._all))

    def take(self, stopped: Callable[[], bool]) -> workers.Worker:
        """Wait for a worker. Raises Refusal when the instance has ended, or the call is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._ended or stopped())
            if self._ended:
                raise Refusal("not-ready", "environment", "the instance has ended", retryable=True)
            if stopped():
                raise Refusal(*workers.STOPPED)
            return self._free.pop()

    def give(self, worker: workers.Worker) -> None:
        """Give a worker back; one too many, or of an instance that has ended, is closed."""
        with self._changed:
            if not self._ended and len(self._all) <= max(1, self.program.replicas):
                self._free.append(worker)
                self._changed.notify_all()
                return
            self._all.remove(worker)
            self._closing += 1
        worker.close()
        with self._changed:
            self._closing -= 1
            self._changed.notify_all()

    def tune(self) -> None:
        """Apply the program's share and number of workers."""
        with self._changed:
            idle, self._free = self._free, []
            everyone = list(self._all)
        for worker in everyone:
            worker.tune()
        for worker in idle:
            self.give(worker)

    def stop(self, number: int) -> None:
        """End the container of a call, if this instance has it, or its wait for one."""
        with self._changed:
            everyone = list(self._all)
            self._changed.notify_all()
        for worker in everyone:
            worker.stop(number)

    def end(self) -> None:
        """Kill the containers and close the workers; wait for that, in bounds."""
        with self._changed:
            self._ended = True
            idle, self._free = self._free, []
            everyone = list(self._all)
            self._changed.notify_all()
        for worker in everyone:
            worker.kill()
        for worker in idle:
            self.give(worker)
        with self._changed:
            self._changed.wait_for(lambda: not self._all and not self._closing, END_TIMEOUT_S)

    def memory_bytes(self) -> int:
        """Return what its containers take now."""
        with self._changed:
            return sum(worker.memory_bytes() for worker in self._all)

    def remark(self) -> str:
        """Return what its containers do not get here."""
        if not self._runtime.box.cgroups:
            return (
                "no control group here: memory and processes of a container are bounded by "
                "rlimits, for each process alone, and it gets no share of the processor"
            )
        with self._changed:
            return next((worker.remark for worker in self._all if worker.remark), "")


class Host:
    """All instances of this process and the threads that run their calls."""

    def __init__(
        self, sock: socket.socket, runtime: runtimes.Runtime, prefix: str, token: str, folder: str
    ) -> None:
        self._stream = Stream(sock)
        self._runtime = runtime
        self._prefix = prefix
        self._token = token
        self._images = folder
        self._reading = threading.Lock()
        self._writing = threading.Lock()
        self._instances: dict[int, Instance] = {}
        self._stopped: dict[int, bool] = {}
        """The calls under way, and whether each is to stop."""
        self._trees: dict[str, int] = {}
        """Images that are mounted, and how many instances run them."""
        self._ids = space.host_ids()
        self._workers = 0
        self._loads = 0
        self._threads = 1
        self._listening = 0
        self._counting = threading.Lock()

    def serve(self) -> None:
        """Serve frames until the daemon hangs up, then end the process."""
        to_the_end(self._serve)

    def _serve(self) -> None:
        while True:
            with self._counting:
                self._listening += 1
            with self._reading:
                frame = self._stream.receive()
                if frame is None:
                    os._exit(0)
                header, body = frame
                number: int = header["id"]
                if header["op"] == "invoke":
                    self._stopped[number] = False
            self._busy()
            if header["op"] == "stop":
                self._stop(number)
                continue
            with contextlib.ExitStack() as after:
                answer, buffers = self._answer(header, body, after)
                self._stopped.pop(number, None)
                self._send(answer, buffers)

    def _busy(self) -> None:
        """Stop listening for a while; another thread does, a new one if need be."""
        with self._counting:
            self._listening -= 1
            lonely = self._listening == 0 and self._threads < MAX_THREADS
            self._threads += lonely
        if lonely:
            threading.Thread(target=self.serve, daemon=True).start()

    def _stop(self, number: int) -> None:
        # In this order: a worker that begins the call after our look sees the note.
        if number in self._stopped:
            self._stopped[number] = True
            for instance in list(self._instances.values()):
                instance.stop(number)

    def _send(self, answer: Header, buffers: list[memoryview]) -> None:
        with self._writing:
            self._stream.send(answer, buffers)

    def _answer(
        self, header: Header, body: memoryview, after: contextlib.ExitStack
    ) -> tuple[Header, list[memoryview]]:
        number: int = header["id"]
        doors = {
            "load": self._load,
            "unload": self._unload,
            "tune": self._tune,
            "stats": self._stats,
        }
        try:
            if header["op"] == "invoke":
                return self._invoke(header, body, after)
            if header["op"] == "unload":
                after.callback(self._collect)
            return {"id": number, **doors[header["op"]](header)}, []
        except Refusal as refusal:
            return {"id": number, "fail": refusal.answer}, []
        except OSError as error:
            text = f"the container host failed: {error.strerror or error}"
            return {"id": number, "fail": ["executor", "environment", text, True]}, []

    def _instance(self, header: Header) -> Instance:
        instance = self._instances.get(header["key"])
        if instance is None:
            raise Refusal("not-ready", "environment", "the instance is not loaded", retryable=True)
        return instance

    def _load(self, header: Header) -> Header:
        name: str = header["digest"]
        about = images.about(self._images, name)
        if about is None:
            raise Refusal("executor", "environment", NOT_UNPACKED)
        with self._counting:
            self._loads += 1
            host_id = self._ids[self._loads % len(self._ids)]
        program = workers.Program(header, about, self._tree(name), host_id)
        instance = Instance(self._runtime, program, name)
        try:
            self._fill(instance)
        except BaseException:
            instance.end()
            self._leave(name)
            raise
        self._instances[header["key"]] = instance
        return {"pid": os.getpid(), "note": instance.remark()}

    def _tree(self, name: str) -> str:
        """Show an image where every container can walk; read-only for all of them."""
        path = f"{workers.FOLDER}/images/{name}"
        with self._counting:
            if name not in self._trees:
                os.makedirs(path, exist_ok=True)
                space.bind_tree(f"{self._images}/{name}/{images.ROOTFS}", path)
            self._trees[name] = self._trees.get(name, 0) + 1
        return path

    def _leave(self, name: str) -> None:
        """Have one instance less of an image."""
        with self._counting:
            self._trees[name] -= 1
            if not self._trees[name]:
                del self._trees[name]
                with contextlib.suppress(OSError):
                    space.unmount(f"{workers.FOLDER}/images/{name}")

    def _fill(self, instance: Instance) -> None:
        """Have as many workers as the setup says, each ready. Raises Refusal or OSError."""
        until = time.monotonic() + FILL_TIMEOUT_S
        for _ in range(instance.lacking()):
            if time.monotonic() > until:
                text = f"its containers took more than {FILL_TIMEOUT_S:.0f} s to start"
                raise Refusal("limit", "environment", text, retryable=True)
            with self._counting:
                self._workers += 1
                number = self._workers
            worker = instance.add(number, self._prefix, self._token)
            try:
                worker.prepare()
            finally:
                instance.give(worker)

    def _unload(self, header: Header) -> Header:
        instance = self._instances.pop(header["key"], None)
        if instance is not None:
            instance.end()
            self._leave(instance.image)
        return {}

    def _collect(self) -> None:
        with self._counting:
            used = frozenset(self._trees)
        with contextlib.suppress(OSError):
            images.collect(self._images, used)

    def _tune(self, header: Header) -> Header:
        instance = self._instance(header)
        program = instance.program
        program.cpu_percent = header["percent"]
        program.priority = header["priority"]
        program.replicas = header["replicas"]
        self._fill(instance)
        instance.tune()
        return {"note": instance.remark()}

    def _stats(self, header: Header) -> Header:
        instance = self._instance(header)
        return {"mem": instance.memory_bytes(), "note": instance.remark()}

    def _invoke(
        self, header: Header, body: memoryview, after: contextlib.ExitStack
    ) -> tuple[Header, list[memoryview]]:
        """Run one call; its worker is made ready for the next one when the answer is sent."""
        began = time.perf_counter_ns()
        number: int = header["id"]
        instance = self._instance(header)
        worker = instance.take(lambda: self._stopped[number])
        after.enter_context(self._given_back(instance, worker, header["key"]))
        worker.begin(number)
        if self._stopped[number]:
            raise Refusal(*workers.STOPPED)
        described, inline, took = worker.run(number, header["in"], body)
        spent_us = (time.perf_counter_ns() - began) // 1000
        answer = {"id": number, "us": spent_us, "out": described, **took}
        program = instance.program
        if program.once:
            answer["mem"] = took["peak"]
        return answer | {
            "flags": hold_described(described, inline, program.blobs, program.checks)
        }, inline

    @contextlib.contextmanager
    def _given_back(self, instance: Instance, worker: workers.Worker, key: int) -> Iterator[None]:
        try:
            yield
        finally:
            if worker.died:
                self._send({"id": 0, "exit": [key, worker.died]}, [])
                worker.died = ""
            # What cannot be made now is made, or refused, when the next call needs it.
            with contextlib.suppress(Refusal, OSError):
                worker.renew()
            instance.give(worker)


def settle(
    configured: str, prefix: str, token: str, trouble: str
) -> tuple[runtimes.Runtime | None, list[str]]:
    """Choose the runtime, in namespaces of our own; why others do not serve."""
    try:
        if not trouble:
            space.furnish()
    except space.NoSpace as error:
        trouble = str(error)
    if trouble:
        return None, [f"no container can be started here: {trouble}"]
    cgroup.sweep(prefix)
    os.mkdir(workers.FOLDER, 0o755)
    return runtimes.choose(configured, f"/{prefix}/{token}-trial", workers.FOLDER)


def probe(configured: str, prefix: str, token: str, folder: str, trouble: str) -> int:
    """Print which runtime serves here and why others do not, and tidy up."""
    if os.path.isdir(folder):
        images.sweep(folder)
        images.collect(folder, frozenset())
    about: dict[str, Any] = {"runtime": "", "version": "", "security": "", "doubts": []}
    if runtimes.installed(configured):
        runtime, about["doubts"] = settle(configured, prefix, token, trouble)
        if runtime is not None:
            strong = runtime.box.users and runtime.box.cgroups
            about["runtime"] = runtime.name
            about["version"] = runtimes.version(runtime.box.runtime)
            about["security"] = "strong" if strong else "basic"
    print(json.dumps(about))
    return 0


def serve(handle: int, configured: str, prefix: str, token: str, folder: str, trouble: str) -> int:
    """Serve the daemon at the other end of a socket until it hangs up."""
    sock = socket.socket(fileno=handle)
    sock.set_inheritable(False)
    runtime, doubts = settle(configured, prefix, token, trouble)
    if runtime is None:
        text = "; ".join(doubts) or "no container runtime is installed: install crun or runc"
        return refuse_all(Stream(sock), text)
    threading.stack_size(THREAD_STACK_BYTES)
    most = min(MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Host(sock, runtime, prefix, token, folder).serve()
    return 0


def refuse_all(stream: Stream, text: str) -> int:
    """Answer every frame that nothing runs here, until the daemon hangs up."""
    while (frame := stream.receive()) is not None:
        refusal = Refusal("executor", "environment", text)
        stream.send({"id": frame[0]["id"], "fail": refusal.answer})
    return 0
