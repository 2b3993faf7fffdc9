"""The daemon's byte code without texts: what only people read takes 0.8 MB of a process.

Installed byte code has them, and who runs the daemon may rarely write beside it. So the lean kind
is kept in the user's cache, made once by a process that ends, so that the daemon's own memory never
sees a compiler. When it is made, that of other versions, of ours or of Python, is deleted: whoever
needs that still makes it again.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from device_agent.prepared import interpreter

COMPILE_S: Final = 60.0
"""What a slow board may take; without it in time the daemon runs as installed."""
_OTHERS: Final = 0o022
_LEAN: Final = "lean-"
_MODULES: Final = (
    "device_agent.begin",
    "device_agent.run",
    "device_agent.journal",
    "device_agent.sources",
    "device_agent.artifacts.fetch",
    "device_agent.artifacts.sharing",
    "device_agent.core.feeder",
    "device_agent.core.trusting",
    "device_agent.executors.onnx",
    "device_agent.executors.wasm",
    "protocols.transport.tls",
)
"""What the daemon loads at its start, and what it may load later."""


def folder(environment: Mapping[str, str]) -> Path | None:
    """Return where lean byte code is kept; None where nothing may be."""
    if sys.dont_write_bytecode:
        return None
    given, home = environment.get("XDG_CACHE_HOME", ""), environment.get("HOME", "")
    if not given and not home:
        return None
    base = Path(given) if given else Path(home) / ".cache"
    return base.absolute() / "tona" / f"{_LEAN}{sys.implementation.cache_tag}"


def options(cache: Path | None) -> list[str]:
    """Return the interpreter's options under which the daemon runs lean; none where that fails."""
    if cache is None:
        return []
    # A fault's traceback then names lines, not columns.
    lean = ["-OO", "-X", "no_debug_ranges", "-X", f"pycache_prefix={cache}"]
    try:
        cache.mkdir(0o700, parents=True, exist_ok=True)
        status = cache.stat()
        if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
            return []
        done = cache / f"made-{_installed()}"
        if not done.exists():
            for old in (cache, *cache.parent.glob(f"{_LEAN}*")):
                shutil.rmtree(old, ignore_errors=True)
            cache.mkdir(0o700, exist_ok=True)
            command = [*interpreter(), *lean, "-c", f"import {', '.join(_MODULES)}"]
            subprocess.run(command, check=True, timeout=COMPILE_S, capture_output=True)
            done.touch()
    except (OSError, subprocess.SubprocessError):
        return []
    return lean


def _installed() -> str:
    """Return what differs when another version has been installed."""
    return str(Path(__file__).stat().st_mtime_ns)
