"""One place where a container of an instance runs: its folders, its container, its calls.

A container stands created before it is needed. That of `once` is started by a call and ends with
it; that of `serve` is started at once and answers calls until it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_call as call
    from device_agent.executors.programs import container_cgroup as cgroup
    from device_agent.executors.programs import container_images as images
    from device_agent.executors.programs import container_space as space
    from device_agent.executors.programs import container_spec as spec
    from device_agent.executors.programs.container_runtime import (
        Container,
        Runtime,
        said_by_runtime,
        write_config,
    )
    from device_agent.executors.programs.stream import Header, Refusal
else:
    import container_call as call
    import container_cgroup as cgroup
    import container_images as images
    import container_space as space
    import container_spec as spec
    from container_runtime import Container, Runtime, said_by_runtime, write_config
    from stream import Header, Refusal

ONCE: Final = "once"
FOLDER: Final = f"{space.WORK}/tona"
OUT_FILES: Final = 256
TAIL_BYTES: Final = 8 * 1024
"""Of what a container says on stderr."""
LINE_MAX_BYTES: Final = 64 * 1024
READ_BYTES: Final = 16 * 1024
PIPE_BYTES: Final = 64 * 1024
FLOOD_BYTES: Final = 1 << 20
FLOOD_PAUSE_S: Final = 0.005
"""After each piece of stderr beyond that in a call."""
PAGE_BYTES: Final = 4096
HANG_UP_GRACE_S: Final = 1.0
"""How long a program that has closed its stdout may take to end."""
STOPPED: Final = ("deadline", "user", "the call was stopped")


class Program:
    """A loaded instance: what its containers run and what its calls bring and give."""

    def __init__(self, request: Header, about: dict[str, Any], tree: str, host_id: int) -> None:
        """Raise Refusal when there is nothing to run."""
        self.once: bool = request["interface"] == ONCE
        self.outputs: list[call.Port] = [
            (name, number, tuple(shape)) for name, number, shape in request["outputs"]
        ]
        self.memory_bytes: int = request["memory"]
        self.output_bytes: int = request["limit"]
        self.blobs: str = request["blobs"]
        self.checks: list[Any] = request.get("checks", [])
        self.constants: list[list[Any]] = request["constants"]
        self.tree = tree
        self.host_id = host_id
        self.env: list[str] = about["env"]
        self.cwd: str = about["cwd"]
        self.args: list[str] = [*about["entrypoint"], *(request["arguments"] or about["command"])]
        if not self.args:
            text = "the image names no program: give it by the task's arguments"
            raise Refusal("executor", "user", text)
        self.cpu_percent: float = request["percent"]
        self.priority: int = request["priority"]
        self.replicas: int = request["replicas"]

    def share(self) -> tuple[float, int]:
        """Return what one of its containers gets of a core, and its priority."""
        return self.cpu_percent / max(1, self.replicas), self.priority


class Worker:
    """One container after another, one call at a time."""

    def __init__(
        self, runtime: Runtime, program: Program, number: int, prefix: str, token: str
    ) -> None:
        """Make its folders. Raises OSError."""
        self._runtime = runtime
        self._program = program
        self._name = f"{prefix}-{number}"
        self._groups = f"/{prefix}/{token}-{number}"
        self._group = ""
        self._folder = f"{FOLDER}/{number}"
        self._turn = 0
        self._soiled = False
        """Something may lie in the outputs."""
        self._lock = threading.Lock()
        self._current = 0
        """The call under way."""
        self._stopped = False
        self._container: Container | None = None
        self._started = False
        self._pipes: list[int] = []
        self._tail = b""
        self._heard_bytes = 0
        """Of stderr during the call."""
        self.died = ""
        """How a container that was to stay has ended by itself; taken by who reports it."""
        self.remark = ""
        self._make_folders()

    def _make_folders(self) -> None:
        program = self._program
        for one in ("", "/in", "/out", "/bundle"):
            os.mkdir(f"{self._folder}{one}", 0o755)
        room = program.output_bytes + (len(program.outputs) + 1) * 2 * PAGE_BYTES
        owner = program.host_id
        options = f"size={room},nr_inodes={OUT_FILES},mode=700,uid={owner},gid={owner}"
        flags = space.MS_NOSUID | space.MS_NODEV | space.MS_NOEXEC
        space.mount("tona", f"{self._folder}/out", "tmpfs", flags, options)
        for name, number, shape, size, path in program.constants:
            call.write_input(f"{self._folder}/in", name, number, tuple(shape), path, size)

    def prepare(self) -> None:
        """Have a container that only waits for its call, and empty outputs.

        Raises Refusal or OSError.
        """
        if self._soiled:
            self._clean()
        if self._container is not None and self._container.wait(0) is not None:
            self._discard()
        if self._container is None:
            self._create()
        if not self._program.once and not self._started:
            self._start()

    def _create(self) -> None:
        program = self._program
        self._turn += 1
        self._group = f"{self._groups}-{self._turn}"
        bundle = f"{self._folder}/bundle"
        wanted = spec.Wanted(
            program.tree,
            program.args,
            env=program.env,
            cwd=program.cwd,
            inputs=f"{self._folder}/in",
            outputs=f"{self._folder}/out",
            memory_bytes=program.memory_bytes,
            host_id=program.host_id,
            group=self._group,
        )
        write_config(bundle, self._runtime.box, wanted)
        container = Container(self._runtime, f"{self._name}-{self._turn}", bundle, self._group)
        with self._lock:
            self._container = container
        theirs = self._open_pipes()
        try:
            container.create(*theirs)
        except Refusal:
            self._discard()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self.tune()

    def _open_pipes(self) -> tuple[int, int, int]:
        """Keep our ends of stdin, stdout and stderr; the container's ends."""
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        err, their_err = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(err, False)
        if self._program.once:
            self._pipes = [err]
            return null, os.dup(null), their_err
        os.close(null)
        their_in, stdin = os.pipe2(os.O_CLOEXEC)
        stdout, their_out = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(stdout, False)
        self._pipes = [err, stdout, stdin]
        return their_in, their_out, their_err

    def _start(self) -> None:
        container = self._container
        assert container is not None
        try:
            container.start()
        except Refusal:
            self._discard()
            raise
        self._started = True

    def tune(self) -> None:
        """Give the container its share of the processor."""
        if self._runtime.box.cgroups:
            self.remark = cgroup.set_share(self._group, *self._program.share())

    def begin(self, number: int) -> None:
        """Be the worker of a call: from now on `stop` finds it."""
        with self._lock:
            self._current, self._stopped = number, False

    def run(
        self, number: int, described: list[list[Any]], body: memoryview
    ) -> tuple[list[list[Any]], list[memoryview], Header]:
        """Run the call that was begun; outputs, inline ones, what it took.

        Raises Refusal or OSError.
        """
        written: list[str] = []
        try:
            self.prepare()
            before_us = self._cpu_us()
            self._bring(described, body, written)
            self._soiled = True
            if self._stopped:
                raise Refusal(*STOPPED)
            if self._program.once:
                self._once()
            else:
                self._serve(number)
            outputs = call.read_outputs(
                f"{self._folder}/out",
                self._program.outputs,
                self._program.blobs,
                self._program.output_bytes,
            )
            container = self._container
            peak = container.most_bytes() if container is not None else 0
            return *outputs, {"cpu": max(0, self._cpu_us() - before_us), "peak": peak}
        finally:
            with self._lock:
                self._current = 0
            for path in written:
                with contextlib.suppress(FileNotFoundError):
                    # What the container keeps open is not to hold memory of ours.
                    os.truncate(path, 0)
                    os.unlink(path)

    def _cpu_us(self) -> int:
        return self._container.cpu_us() if self._container is not None else 0

    def _bring(self, described: list[list[Any]], body: memoryview, written: list[str]) -> None:
        at = 0
        folder = f"{self._folder}/in"
        for name, number, shape, size, file in described:
            view: memoryview | str = f"{self._program.blobs}/{file}"
            if not file:
                view = body[at : at + size]
                at += size
            written.append(f"{folder}/{name}{call.SUFFIX}")
            call.write_input(folder, name, number, tuple(shape), view, size)

    def _once(self) -> None:
        self._start()
        self._tail, self._heard_bytes = b"", 0
        container = self._container
        assert container is not None
        poller = select.poll()
        poller.register(container.pidfd, select.POLLIN)
        poller.register(self._pipes[0], select.POLLIN)
        while container.pidfd not in dict(poller.poll()):
            if not self._hear():
                poller.unregister(self._pipes[0])
        code = container.wait()
        self._hear_out()
        if code:
            raise self._complaint(f"the container {_how(code)}")
        if self._stopped:
            raise Refusal(*STOPPED)

    def _serve(self, number: int) -> None:
        err, stdout, stdin = self._pipes
        container = self._container
        assert container is not None
        self._tail, self._heard_bytes = b"", 0
        line = {"id": str(number), "in": spec.IN, "out": spec.OUT}
        with contextlib.suppress(BrokenPipeError):
            os.write(stdin, json.dumps(line).encode() + b"\n")
        answer = b""
        poller = select.poll()
        for fd in (stdout, err, container.pidfd):
            poller.register(fd, select.POLLIN)
        while b"\n" not in answer:
            ready = dict(poller.poll())
            if err in ready and not self._hear():
                poller.unregister(err)
            piece = _read(stdout) if stdout in ready else None
            if piece:
                answer += piece
            elif container.pidfd in ready or piece == b"":
                raise self._ended(container)
            if len(answer) > LINE_MAX_BYTES:
                raise self._broken(f"said {len(answer)} bytes without the end of a line")
        if self._stopped:
            raise Refusal(*STOPPED)
        self._understand(answer, str(number))

    def _understand(self, answer: bytes, number: str) -> None:
        """Take the answer of a call. Raises Refusal for an error, or for what is no answer."""
        line, _, more = answer.partition(b"\n")
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            said = None
        if more or not isinstance(said, dict) or said.get("id") != number:
            raise self._broken(f"said {line[:200].decode('utf-8', 'replace')!r} on stdout")
        error = said.get("error")
        if error is not None:
            raise Refusal("executor", "user", " ".join(str(error).split()) or "the program failed")

    def _broken(self, what: str) -> Refusal:
        self._discard()
        text = f"the container {what}, which is no answer to its call: it is started anew"
        return Refusal("executor", "user", text)

    def _ended(self, container: Container) -> Refusal:
        """Say how a container that was to stay has ended; one that hung up is ended."""
        code = container.wait(HANG_UP_GRACE_S)
        how = _how(code) if code is not None else "closed its stdout"
        self._hear_out()
        refusal = self._complaint(f"the container {how} during a call")
        if not self._stopped:
            self.died = f"its container {how}"
        self._discard()
        return refusal

    def _complaint(self, fallback: str) -> Refusal:
        """Return why a container has failed, in its own words where it has said any."""
        program = self._program
        if self._stopped:
            return Refusal(*STOPPED)
        if cgroup.ran_out_of_memory(self._group):
            text = f"the container took more than the {program.memory_bytes} bytes of its manifest"
            return Refusal("limit", "user", text)
        lines = self._tail.strip().splitlines()
        last = lines[-1] if lines else fallback.encode()
        text = said_by_runtime(last) or " ".join(last.decode("utf-8", "replace").split())[:1000]
        room = os.statvfs(f"{self._folder}/out")
        if room.f_bfree == 0:
            text += f" (its outputs have filled the {program.output_bytes} bytes they may take)"
            return Refusal("limit", "user", text)
        return Refusal("executor", "user", text)

    def _hear(self) -> bool:
        """Take some of stderr, its end alone kept; False when it is closed.

        Who says very much is heard slowly: this process works for others, too.
        """
        piece = _read(self._pipes[0])
        if piece:
            self._tail = (self._tail + piece)[-TAIL_BYTES:]
            self._heard_bytes += len(piece)
            if self._heard_bytes > FLOOD_BYTES:
                time.sleep(FLOOD_PAUSE_S)
        return piece != b""

    def _hear_out(self) -> None:
        """Take what an ended container has left of stderr: what a pipe holds, at most."""
        for _ in range(PIPE_BYTES // READ_BYTES + 1):
            piece = _read(self._pipes[0])
            if not piece:
                return
            self._tail = (self._tail + piece)[-TAIL_BYTES:]

    def kill(self) -> None:
        """End its container, whatever that does; from any thread."""
        with self._lock:
            if self._container is not None:
                self._container.kill()

    def stop(self, number: int) -> None:
        """End the container of a call, if that is under way; from any thread."""
        with self._lock:
            if self._current == number:
                self._stopped = True
                if self._container is not None:
                    self._container.kill()

    def renew(self) -> None:
        """Be ready for the next call: empty outputs, a container that waits.

        Raises Refusal or OSError.
        """
        if self._program.once:
            self._discard()
        self.prepare()

    def _clean(self) -> None:
        """Empty the outputs. Raises OSError."""
        try:
            call.clear(f"{self._folder}/out")
        except (OSError, RecursionError):
            # Whoever still writes there is ended; what is left has nobody any more.
            self._discard()
            call.clear(f"{self._folder}/out")
        self._soiled = False

    def memory_bytes(self) -> int:
        """Return what its container takes now."""
        return cgroup.memory_bytes(self._group, peak=False)

    def _discard(self) -> None:
        with self._lock:
            container, self._container = self._container, None
        self._started = False
        if container is not None:
            container.remove()
        for fd in self._pipes:
            os.close(fd)
        self._pipes = []

    def close(self) -> None:
        """End its container and remove everything of it; no call is under way."""
        self._discard()
        with contextlib.suppress(OSError):
            space.unmount(f"{self._folder}/out")
        images.remove_tree(self._folder)


def _read(fd: int) -> bytes | None:
    """Read what is there; None when nothing is, empty at the end."""
    try:
        return os.read(fd, READ_BYTES)
    except BlockingIOError:
        return None


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code >= 0 else f"was killed by signal {-code}"
