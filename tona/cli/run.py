"""Runs a command and turns whatever ends it into one sentence and an exit code."""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Final

import typer
from typer.main import get_command

from protocols.errors import TonaError
from tona.cli import errors
from tona.cli.plain import plain

TRACEBACK: Final = "TONA_TRACEBACK"
"""Set, it lets a trace through: for whoever reports a fault."""
GLOBAL: Final = ("--api", "--bundle")
"""Options of the whole program that may also stand after the command."""
EXTRAS: Final = (
    "cryptography",
    "httptools",
    "iotcore",
    "numpy",
    "securesystemslib",
    "starlette",
    "tuf",
    "uvicorn",
)
"""Packages that the command line itself does without."""
OWN: Final = ("controller", "agent")
"""Commands with an option of their own by such a name."""
UNWRITTEN: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. No traceback reaches the user."""
    try:
        code = _invoke(hoisted(arguments))
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as end:
        # Typer turns a closed pipe into an exit of its own.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        _silence()
        return errors.OK
    except (KeyboardInterrupt, typer.Abort):
        return errors.INTERRUPTED
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        return _say(*_verdict(error))
    return code


def _verdict(error: Exception) -> tuple[str, int, str]:
    """Return the sentence, the exit code and the hint of a failure."""
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        command = "tona" if context is None else context.command_path
        told = error.format_message().rstrip(".") or "a command is missing"
        return told, errors.USAGE, f"see `{command} --help`"
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if package in EXTRAS:
        told = f"this needs the package {package}: pip install 'tona-edge[controller]'"
        return told, errors.UNAVAILABLE, ""
    if isinstance(error, TonaError):
        code = errors.exit_code(error)
        if code != errors.BUG:
            return str(error), code, ""
        return f"a fault of tona: {error}", code, errors.ISSUES
    if isinstance(error, OSError) and error.errno in UNWRITTEN and error.filename is None:
        _silence()
        return f"the output cannot be written: {error.strerror}", errors.UNAVAILABLE, ""
    told = f"a fault of tona: {type(error).__name__}: {error} ({_where(error)})"
    return told, errors.BUG, errors.ISSUES


def hoisted(arguments: Sequence[str]) -> list[str]:
    """Move the global options before the command, wherever they were written. Pure."""
    command = next((one for one in arguments if not one.startswith("-")), "")
    if command in OWN:
        return list(arguments)
    first: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        one = waiting.pop(0)
        if one == "--":
            rest += [one, *waiting]
            break
        if one in GLOBAL and waiting:
            first += [one, waiting.pop(0)]
        elif one.startswith(tuple(f"{name}=" for name in GLOBAL)):
            first.append(one)
        else:
            rest.append(one)
    return first + rest


def _invoke(arguments: Sequence[str]) -> int:
    from tona.cli.app import app  # noqa: PLC0415 - an error while it loads is told in one line too

    result = get_command(app).main(args=arguments, prog_name="tona", standalone_mode=False)
    return result if isinstance(result, int) else errors.OK


def _say(text: str, code: int, hint: str = "") -> int:
    link = " " if text.endswith("?") else "; "
    text = plain(text)
    try:
        print(f"tona: {text}{link}{hint}" if hint else f"tona: {text}", file=sys.stderr)  # noqa: T201 - the command line speaks
    except BrokenPipeError:
        _silence()
    return code


def _where(error: BaseException) -> str:
    """Return the innermost line of the trace."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "no trace"
    path = trace.tb_frame.f_code.co_filename
    return f"{'/'.join(path.split('/')[-2:])}:{trace.tb_lineno}"


def _silence() -> None:
    """Let the interpreter end quietly: whoever read our output is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
