"""The optimised form of each model, kept on this device: it loads faster and takes less memory.

Whoever is about to load a model calls `form_of` before it enters the sandbox. The form is checked
and stored by a process of its own, for that one has the sealing key and never looks into the bytes;
it is made by another one in the sandbox, which loads the model, writes the form into memory and
exits. What was stored is mapped by whoever loads it, so that its weights are pages of the file. A
form is bound to this processor and this ONNX Runtime; one that is broken or foreign is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import sealed
    from device_agent.executors.programs.onnx_program import runtime
    from device_agent.executors.programs.stream import Header, Refusal, die_with_parent
else:
    import sealed
    from onnx_program import runtime
    from stream import Header, Refusal, die_with_parent

MAX_BYTES: Final = 512 << 20
"""Of all forms on this device."""
LAYOUT: Final = 1
"""Counts up when the settings change under which forms are made."""
SUFFIX: Final = ".ort"
_DONE, _ABSENT, _REFUSED = 0, 3, 4


def _processor() -> str:
    """Return a word for what this processor can do."""
    kept = []
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in {
                    "model name",
                    "flags",
                    "Features",
                    "CPU part",
                    "CPU implementer",
                }:
                    kept.append(value.strip())
    except OSError:
        kept.append("unknown")
    about = "\n".join([os.uname().machine, *sorted(set(kept))])
    return hashlib.blake2b(about.encode(), digest_size=8).hexdigest()


BOUND_TO: Final = f"{LAYOUT} {runtime.version} {_processor()}"
"""What a form depends on beside its model."""


def form_of(request: Header, source: int, make: Callable[[int], bool]) -> int:
    """Return an open file with the optimised form of a model; it is empty where there is none.

    It is the stored one, which no process of a model may write, or one in memory where it could not
    be stored. `make` enters the sandbox, loads the model and writes its form; False when it has
    none. Raises Refusal when it refuses the model.
    """
    folder, digest = request["cache"], request["digest"]
    stored = _stored(folder, digest)
    if stored >= 0:
        return stored
    form = os.memfd_create("form", os.MFD_CLOEXEC)
    said = os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        status = _apart(lambda: _make(make, form, said))
        if status == _REFUSED:
            code, blame, text, retryable = json.loads(os.pread(said, 65536, 0))
            raise Refusal(code, blame, text, retryable=retryable)
    finally:
        os.close(said)
    if status < 0:
        raise _died(-status)
    if status != _DONE:
        os.ftruncate(form, 0)
    elif _apart(lambda: _keep(folder, digest, source, form)) == _DONE:
        stored = _stored(folder, digest)
        if stored >= 0:
            os.close(form)
            return stored
    return form


def _stored(folder: str, digest: str) -> int:
    """Open the stored form of a model and have its seal checked; -1 when there is none whole."""
    try:
        form = os.open(f"{folder}/{digest}{SUFFIX}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return -1
    if _apart(lambda: _check(folder, digest, form)) == _DONE:
        return form
    os.close(form)
    return -1


def _died(number: int) -> Refusal:
    if number == signal.SIGKILL:
        text = "the process that loaded the model was killed"
        return Refusal("executor", "environment", text, retryable=True)
    name = signal.Signals(number).name
    return Refusal(
        "executor", "user", f"ONNX Runtime crashed with {name} while it loaded the model"
    )


def _apart(work: Callable[[], int]) -> int:
    """Do work in a process of its own; its exit status, or minus the signal that ended it."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        status = os.EX_SOFTWARE
        try:
            die_with_parent(parent)
            status = work()
        except BaseException:  # noqa: BLE001 - a process's edge: it must never return
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _check(folder: str, digest: str, form: int) -> int:
    if not sealed.whole(folder, digest + SUFFIX, _name(digest), form):
        return _ABSENT
    os.utime(form)
    return _DONE


def _make(make: Callable[[int], bool], form: int, said: int) -> int:
    try:
        return _DONE if make(form) else _ABSENT
    except Refusal as refusal:
        _write(said, json.dumps(refusal.answer).encode())
        return _REFUSED


def _keep(folder: str, digest: str, source: int, form: int) -> int:
    """Store a form, unless the file that it was made from is not what its digest says."""
    if hashlib.sha256(_read(source)).hexdigest() != digest:
        return _ABSENT
    sealed.make_private(folder)
    sealed.store(folder, digest + SUFFIX, _name(digest), _read(form))
    sealed.trim(folder, SUFFIX, MAX_BYTES)
    return _DONE


def _name(digest: str) -> str:
    return f"{digest} {BOUND_TO}"


def _read(handle: int) -> bytes:
    with open(handle, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
        return file.read()


def _write(handle: int, data: Any) -> None:
    with open(handle, "wb", buffering=0, closefd=False) as file:
        left = memoryview(data)
        while left.nbytes:
            left = left[file.write(left) :]
