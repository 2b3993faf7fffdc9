"""The data that variants are made with and judged by: read, named, and divided for good.

What is given is one of these: FILE.npz with arrays by input, whose first axis counts samples, and
`labels` beside them if they are known; a folder of .npz, each a sample as the model takes it; or a
folder of any files and a script of the author's, which says how to read them.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from protocols.errors import UserError

MAX_SAMPLES: Final = 100_000
LABELS: Final = "labels"

Arrays = dict[str, Any]


class Sample(NamedTuple):
    """One input of the model and what it shows."""

    name: str
    inputs: Arrays
    label: str | None


class Script(NamedTuple):
    """What an author's own file says of the data."""

    prepare: Callable[[Path], Arrays | None]
    label: Callable[[Path], str | None] | None
    decode: Callable[[Arrays], str] | None


def read_script(path: Path) -> Script:
    """Load an author's file; it runs as code. Raises UserError."""
    spec = importlib.util.spec_from_file_location("tona_variants_script", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{path}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{path}: {error}") from None
    prepare = getattr(module, "prepare", None)
    if not callable(prepare):
        raise UserError(f"{path}: it has no function prepare(path) that returns inputs by name")
    return Script(prepare, getattr(module, "label", None), getattr(module, "decode", None))


def read_samples(data: Path, script: Script | None, labels: Path | None) -> list[Sample]:
    """Read everything there is. Raises UserError."""
    known = _read_labels(labels) if labels else {}
    if data.is_file():
        found = list(_of_file(data, known))
    elif data.is_dir():
        found = list(_of_folder(data, script, known))
    else:
        raise UserError(f"{data}: there is no such file or folder")
    if not found:
        raise UserError(f"{data}: it holds no sample; give .npz files, or --script for others")
    return found[:MAX_SAMPLES]


def divide(samples: list[Sample], calibration: int) -> tuple[list[Sample], list[Sample]]:
    """Return samples to make variants with, and others to judge them by.

    The order is that of a digest of the inputs: it is the same each time, has nothing to do with
    names, and equal samples come to one side. Raises UserError when too few are left.
    """
    by_digest: dict[str, list[Sample]] = {}
    for one in samples:
        by_digest.setdefault(_digest(one.inputs), []).append(one)
    made_with: list[Sample] = []
    judged_by: list[Sample] = []
    for digest in sorted(by_digest):
        side = made_with if len(made_with) < calibration else judged_by
        side += by_digest[digest]
    if not judged_by:
        raise UserError(
            f"{len(samples)} samples, {calibration} of them to calibrate: none is left to "
            "judge by; give more, or a smaller --calibration"
        )
    return made_with, judged_by


def _digest(inputs: Arrays) -> str:
    found = hashlib.sha256()
    for name in sorted(inputs):
        found.update(f"{name}{inputs[name].dtype}{inputs[name].shape}".encode())
        found.update(np.ascontiguousarray(inputs[name]).tobytes())
    return found.hexdigest()


def _read_labels(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, tab, label = line.partition("\t")
        if line and not tab:
            raise UserError(f"{path}:{number}: a line is NAME, a tab, LABEL")
        found[name] = label
    return found


def _load(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it is no .npz of plain arrays: {error}") from None


def _of_file(path: Path, known: dict[str, str]) -> Iterator[Sample]:
    arrays = _load(path)
    told = arrays.pop(LABELS, None)
    lengths = {len(one) if one.ndim else 0 for one in arrays.values()}
    if len(lengths) != 1:
        raise UserError(f"{path}: its arrays have different numbers of samples as first axis")
    for at in range(lengths.pop()):
        label = str(told[at]) if told is not None and at < len(told) else known.get(str(at))
        yield Sample(str(at), {name: one[at : at + 1] for name, one in arrays.items()}, label)


def _of_folder(folder: Path, script: Script | None, known: dict[str, str]) -> Iterator[Sample]:
    pattern = "*" if script else "*.npz"
    for path in sorted(folder.glob(pattern)):
        if path.name.startswith(".") or not path.is_file():
            continue
        inputs = script.prepare(path) if script else _load(path)
        if inputs is None:
            continue
        label = script.label(path) if script and script.label else None
        if label is None:
            label = known.get(path.name, known.get(path.stem))
        yield Sample(path.name, inputs, label)
