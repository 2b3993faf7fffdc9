"""A command inside a testbed that stands: in one of its networks, with its operator's identity."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from protocols.errors import EnvironmentFailure, UserError
from tona.cli.settings import KEYS_VARIABLE
from tona.local.inside import enter, own_sys
from tona.testbed.bed import Standing
from tona.testbed.plan import BACKHAUL, KEYS


def visit(found: Standing, at: str, command: list[str]) -> NoReturn:
    """Become a command. Raises UserError, EnvironmentFailure."""
    # `tona` is found beside the interpreter too, where nobody has activated its environment.
    paths = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{Path(sys.executable).parent}"
    program = shutil.which(command[0], path=paths)
    if program is None:
        raise UserError(f"{command[0]}: there is no such command")
    if at and at not in found.spaces:
        known = ", ".join(found.spaces) or "this machine's loopback alone, without --at"
        raise UserError(f"there is no network {at!r} in this testbed: choose {known}")
    own = {**os.environ, "PATH": paths}
    if found.bundle:
        own |= {"TONA_BUNDLE": found.bundle, KEYS_VARIABLE: str(Path(found.folder) / KEYS)}
    elif found.seen is not None:
        own["TONA_API"] = found.seen.api_url
    try:
        if found.spaces:
            enter(found.spaces[at or BACKHAUL])
            own_sys()
        os.execve(program, [program, *command[1:]], own)  # noqa: S606 - what the user asks for
    except OSError as error:
        raise EnvironmentFailure(f"cannot enter the testbed: {error.strerror}") from None
