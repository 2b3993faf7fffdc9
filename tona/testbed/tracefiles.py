"""Traces in a folder: CSV files, packed or not."""

import gzip
import zlib
from pathlib import Path
from typing import Final

from protocols.errors import UserError
from tona.testbed.traces import NoTrace, Sample, Window, parse, windows

SUFFIXES: Final = (".csv", ".csv.gz")
FILES_MAX: Final = 1000
TRACE_MAX_BYTES: Final = 64 << 20
"""Unpacked."""
HEAD_MAX_BYTES: Final = 4096


def read(folder: Path) -> list[Window]:
    """Return the windows of every trace in a folder, by file. Raises UserError.

    Where none lies in the folder itself, those in the folders below are taken, other tables not.
    """
    try:
        files = sorted(one for one in folder.iterdir() if one.name.endswith(SUFFIXES))
        if not files:
            below = sorted(one for one in folder.glob("*/*") if one.name.endswith(SUFFIXES))
            files = [one for one in below[:FILES_MAX] if _is_trace(one)]
    except OSError as error:
        raise UserError(f"--traces {folder}: {error.strerror}") from None
    if not files:
        raise UserError(f"--traces {folder}: no trace in it ({', '.join(SUFFIXES)})")
    if len(files) > FILES_MAX:
        raise UserError(f"--traces {folder}: {len(files)} traces, at most {FILES_MAX} at once")
    found = [
        window
        for file in files
        for window in windows(str(file.relative_to(folder)), parse_file(file))
    ]
    if not any(one.moves for one in found):
        raise UserError(f"--traces {folder}: in none of {len(files)} traces the cell changes")
    return found


def _is_trace(file: Path) -> bool:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            parse([content.readline(HEAD_MAX_BYTES).decode()])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, NoTrace):
        return False
    return True


def parse_file(file: Path) -> tuple[Sample, ...]:
    """Return the samples of a file. Raises UserError."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as content:
            data = content.read(TRACE_MAX_BYTES + 1)
        samples = parse(data.decode().splitlines())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except (EOFError, zlib.error, UnicodeDecodeError, NoTrace) as error:
        raise UserError(f"{file}: no radio trace: {error}") from None
    if len(data) > TRACE_MAX_BYTES:
        raise UserError(f"{file}: larger than {TRACE_MAX_BYTES >> 20} MiB: split it")
    return samples
