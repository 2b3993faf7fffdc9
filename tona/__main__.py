"""`tona` and `python -m tona`: the device agent at once, everything else through the Typer app."""

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

from device_agent.told import put_off

AGENT: Final = "agent"
USAGE: Final = 2
CLI_PACKAGES: Final = ("httpx", "rich", "typer")


def become_agent(arguments: Sequence[str]) -> NoReturn:
    """Become the device agent: its memory counts, so nothing of the command line stays in it."""
    command = [sys.executable, "-P", "-m", "device_agent", *arguments]
    put_off()  # until it heeds them
    os.execv(sys.executable, command)  # noqa: S606 - our own interpreter and module


def main() -> int:
    """Run the command line; return its exit code."""
    put_off()
    if sys.argv[1:2] == [AGENT]:
        become_agent(sys.argv[2:])
    try:
        from tona.cli.run import run  # noqa: PLC0415 - only where the packages are installed
    except ModuleNotFoundError as error:
        if error.name not in CLI_PACKAGES:
            raise
        print(  # noqa: T201 - the one thing left to say
            f"tona: the command line needs the package {error.name}: install it with "
            "pip install 'tona-edge[cli]', or [controller] to run a controller here "
            "(only `tona agent` works without)",
            file=sys.stderr,
        )
        return USAGE
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
