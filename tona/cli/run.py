"""Runs a command and turns whatever ends it into one sentence and an exit code."""

import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

import typer
from typer.main import get_command

from device_agent.told import hear
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
FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code. No traceback reaches the user."""
    _lenient()
    try:
        code = _invoke(hoisted(arguments))
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as end:
        # Typer turns a closed pipe into an exit of its own.
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):
            raise
        _silence(sys.stdout)
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
    outside = _outside(error)
    if outside is not None:
        return *outside, ""
    told = f"a fault of tona: {type(error).__name__}: {error} ({_where(error)})"
    return told, errors.BUG, errors.ISSUES


def _outside(error: Exception) -> tuple[str, int] | None:
    """Return sentence and exit code of what the machine or the arguments have in them."""
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        return "an argument is not UTF-8: write it so", errors.USAGE
    if not isinstance(error, OSError) or error.errno not in {*UNWRITTEN, *FORBIDDEN}:
        return None
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}", errors.UNAVAILABLE
    _silence(sys.stdout)
    return f"the output cannot be written: {error.strerror}", errors.UNAVAILABLE


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

    hear()
    result = get_command(app).main(args=arguments, prog_name="tona", standalone_mode=False)
    return result if isinstance(result, int) else errors.OK


def _say(text: str, code: int, hint: str = "") -> int:
    link = " " if text.endswith("?") else "; "
    text = plain(text)
    try:
        print(f"tona: {text}{link}{hint}" if hint else f"tona: {text}", file=sys.stderr)  # noqa: T201 - the command line speaks
    except OSError:
        _silence(sys.stderr)
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


def _lenient() -> None:
    """Have outputs that take everything: a sign that the terminal has not is a question mark."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - ours to the end
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")


def _silence(stream: TextIO) -> None:
    """Let the interpreter end quietly: whoever read this output is gone, or has no room."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
