"""The checks of `tona doctor`: each looks at one thing and says what it found."""

import asyncio
import os
import platform
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from device_agent.executors.onnx import USER as MODELS_USER
from device_agent.executors.process import PROGRAMS
from device_agent.sensing import machine
from device_agent.sensing.sampler import Sampler
from firmware_profiles import Detection, detect
from protocols.errors import TonaError
from tona.cli.draw import size
from tona.cli.settings import Settings
from tona.demo.material import NEEDED, use_case

PROBE_TIMEOUT_S: Final = 30.0
REACH_TIMEOUT_S: Final = 5.0
OLDEST_PYTHON: Final = (3, 11)
DISK_NEEDED_BYTES: Final = 1 << 30
SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"
ROOT: Final = Path("/")


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    ABSENT = "absent"
    """Not there; only what needs it does without."""
    FAILED = "failed"
    """Nothing of tona works here without it."""


class Finding(Struct, frozen=True):
    """What one check found."""

    what: str
    state: State
    found: str
    hint: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Run every check."""
    detection = detect()
    return [
        _python(),
        _system(),
        _clock(),
        _folder(),
        _wasm(),
        _onnx(),
        _signatures(),
        *_apart(),
        _containers(),
        *_brokers(),
        _trust(),
        *_kernel(),
        *_board(detection),
        _demo(),
        _controller(settings),
        *_nodes(settings),
    ]


def _found(what: str, ok: bool, found: str, hint: str, otherwise: State = State.ABSENT) -> Finding:
    return Finding(what, State.OK, found) if ok else Finding(what, otherwise, found, hint)


def _python() -> Finding:
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return _found(
        "python",
        sys.version_info >= OLDEST_PYTHON,
        f"{platform.python_version()} at {sys.executable}",
        f"install Python {wanted} or newer",
        State.FAILED,
    )


def _system() -> Finding:
    return _found(
        "system",
        sys.platform == "linux",
        f"{machine.os_name(ROOT)}, {machine.arch()}",
        "tona runs on Linux",
        State.FAILED,
    )


def _clock() -> Finding:
    # Newer than these lines: a board without a clock battery starts in 1970.
    known = Path(__file__).stat().st_mtime
    return _found(
        "clock",
        time.time() > known,
        time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "set the clock (timedatectl set-ntp true): certificates are refused until then",
        State.FAILED,
    )


def _folder() -> Finding:
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "tona"
    there = next(one for one in (state, *state.parents) if one.exists())
    free = shutil.disk_usage(there).free
    ok = os.access(there, os.W_OK | os.X_OK) and free >= DISK_NEEDED_BYTES
    return _found(
        "data folder",
        ok,
        f"{state}, {size(free)} free",
        f"make {there} writable with {size(DISK_NEEDED_BYTES)} free, or set XDG_STATE_HOME",
        State.FAILED,
    )


def _wasm() -> Finding:
    program = "import wasmtime, importlib.metadata as m; print(m.version('wasmtime'))"
    found = _import("wasmtime", program)
    hint = "pip install 'tona-edge[wasm]': without it this machine runs no WebAssembly task"
    if not found[1] and (lacking := _lacking("wasm_zygote.py")):
        return Finding("wasm executor", State.ABSENT, lacking, "it cannot start as this user here")
    return _found("wasm executor", not found[1], found[0] or found[1], hint)


def _lacking(zygote: str) -> str:
    """Return what the program of an executor says of why it cannot start; empty when it can."""
    program = [sys.executable, "-s", str(PROGRAMS / zygote), "--probe"]
    try:
        ended = subprocess.run(
            program, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    said = ended.stderr.strip().partition("\n")[0].partition(": ")[2]
    return (said or f"its probe ended with {ended.returncode}") if ended.returncode else ""


def _onnx() -> Finding:
    program = "import onnxruntime as o; print(o.__version__, ' '.join(o.get_available_providers()))"
    found = _import("onnxruntime", program)
    hint = "pip install 'tona-edge[onnx]': without it this machine runs no ONNX task"
    return _found("onnx executor", not found[1], found[0] or found[1], hint)


def _signatures() -> Finding:
    program = "import tuf.ngclient, importlib.metadata as m; print(m.version('tuf'))"
    found = _import("tuf", program)
    hint = "pip install 'tona-edge[trust]': without it a node with a bundle runs no artifact"
    return _found("signatures", not found[1], found[0] or found[1], hint)


def _apart() -> Iterator[Finding]:
    """Say what keeps models from the rest beside the sandbox: a user and a group of their own."""
    if os.geteuid():
        yield Finding("user of models", State.OK, "the agent's own, which is not root")
    else:
        known = _is_user(MODELS_USER)
        hint = f"useradd --system --no-create-home {MODELS_USER}: else models run as root"
        yield _found("user of models", known, MODELS_USER if known else "root", hint)
    program = [sys.executable, "-s", str(PROGRAMS / "onnx_zygote.py"), "--apart"]
    try:
        ended = subprocess.run(
            program, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        # Without ONNX Runtime there are no models; that has its own line.
        return
    why = ended.stdout.strip()
    hint = "run the agent as root or as a unit of systemd 254: else each model has its own bounds"
    yield _found("group of models", not why, why or "memory and processes bounded together", hint)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _containers() -> Finding:
    """Really run a container, as the device agent does at its start."""
    what, hint = "container executor", "apt install crun (or runc): containers need one of them"
    program = PROGRAMS / "container_host.py"
    command = [sys.executable, "-s", str(program), "--probe", "", "tona-doctor", ""]
    try:
        ended = subprocess.run(command, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
        about = msgspec.json.decode(ended.stdout)
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        return Finding(what, State.ABSENT, f"cannot be tried: {error}", hint)
    if about["runtime"]:
        words = f"{about['runtime']} {about['version']}, security {about['security']}"
        return Finding(what, State.OK, words)
    if about["doubts"]:
        return Finding(what, State.ABSENT, "; ".join(about["doubts"]), "run it where it may")
    return Finding(what, State.ABSENT, "no container runtime is installed", hint)


def _import(module: str, program: str) -> tuple[str, str]:
    """Return what a program prints in an interpreter of its own, and why it does not."""
    if find_spec(module) is None:
        return "", f"{module} is not installed"
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{module} cannot be loaded: {error}"
    if ended.returncode:
        words = ended.stderr.strip().split("\n")[-1]
        return "", f"{module} cannot be loaded: {words}"
    return f"{module} {ended.stdout.strip()}", ""


def _brokers() -> Iterator[Finding]:
    installed = _version("iotcore")
    hint = "pip install 'tona-edge[controller]'"
    yield _found("embedded broker", bool(installed), f"iotcore {installed or '-'}", hint)
    path = shutil.which("mosquitto", path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")
    hint = "apt install mosquitto: a broker that leaves loopback needs it"
    yield _found("mosquitto", path is not None, path or "not installed", hint)


def _trust() -> Finding:
    installed = _version("cryptography")
    hint = "pip install 'tona-edge[controller]': `tona ca` needs it"
    return _found("certificates", bool(installed), f"cryptography {installed or '-'}", hint)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _kernel() -> Iterator[Finding]:
    yield _found(
        "pressure (PSI)",
        os.access("/proc/pressure/cpu", os.R_OK),
        "/proc/pressure",
        "boot with psi=1; load is reported without it",
    )
    yield _found(
        "memory cgroup",
        machine.has_memory_cgroup(ROOT),
        "/sys/fs/cgroup",
        "boot with cgroup_enable=memory; tasks are held to their memory by rlimits until then",
    )


def _board(detection: Detection) -> Iterator[Finding]:
    profile = detection.profile
    yield _found(
        "board profile",
        not profile.name.startswith("generic-"),
        f"{profile.name}: {detection.why}",
        "a profile of your own names its sensors: see `tona profile show` and `validate`",
    )
    sampler = Sampler(ROOT, profile, now_ms=round(time.monotonic() * 1000))
    try:
        inventory = sampler.inventory()
        for one in inventory.accelerators:
            yield Finding(one.kind, State.OK, f"{one.name} ({', '.join(one.providers) or '-'})")
        if not inventory.accelerators:
            yield Finding("gpu/npu", State.ABSENT, "none found", "tasks run on the CPU")
        absent = [one for one in inventory.absent if one not in {"gpu", "npu"}]
        if absent:
            yield Finding("sensors", State.ABSENT, ", ".join(absent), "reported as absent")
        for warning in sampler.warnings:
            yield Finding("sensors", State.ABSENT, warning)
    finally:
        sampler.close()


def _demo() -> Finding:
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        return Finding(
            "demo", State.ABSENT, f"without {', '.join(missing)}", "run `make demo` in a clone"
        )
    try:
        return Finding("demo", State.OK, str(use_case().parent))
    except TonaError as error:
        return Finding("demo", State.ABSENT, str(error))


def _controller(settings: Settings) -> Finding:
    from tona.cli.api import Api, target  # noqa: PLC0415 - slow to import

    async def ask() -> str:
        async with asyncio.timeout(REACH_TIMEOUT_S), Api(target(settings)) as api:
            info = await api.call("system.info")
            return f"{api.url}: cell {info.cell}, version {info.version}, broker {info.broker}"

    return _attempt("controller", lambda: asyncio.run(ask()), "start one with `tona up`")


def _nodes(settings: Settings) -> Iterator[Finding]:
    """Find what the nodes of a running cell complain of; nothing where none runs."""
    from tona.cli.api import Api, target  # noqa: PLC0415 - slow to import

    async def ask() -> list[str]:
        async with asyncio.timeout(REACH_TIMEOUT_S), Api(target(settings)) as api:
            nodes, _ = await api.listing("fleet.status")
            return [f"{one.node}: {said}" for one in nodes for said in one.warnings]

    try:
        said = asyncio.run(ask())
    except (TimeoutError, TonaError):
        return
    yield from (Finding("node", State.ABSENT, one) for one in said)


def _attempt(what: str, work: Callable[[], str], hint: str) -> Finding:
    try:
        return Finding(what, State.OK, work())
    except TimeoutError:
        return Finding(what, State.ABSENT, f"no answer in {REACH_TIMEOUT_S:.0f} s", hint)
    except TonaError as error:
        return Finding(what, State.ABSENT, str(error).partition(": start one")[0], hint)
