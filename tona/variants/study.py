"""From a model and data to variants, their figures, and what a use case may say of them."""

import json
from math import ceil
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from protocols.errors import UserError
from tona.variants.judge import metric_of
from tona.variants.make import WAYS, Way, check_model, make
from tona.variants.run import Course, memory_bytes, open_session, outputs_of, race
from tona.variants.samples import Sample, Script, divide, read_samples

ORIGINAL: Final = "original"
TIE: Final = 0.03
"""Times and memory that differ by less are equal: no machine tells them apart."""
FLOAT_BITS: Final = 32


class Figures(Struct, frozen=True):
    """One form of the model."""

    name: str
    about: str
    file: str = ""
    size_bytes: int = 0
    precision_bits: int = 0
    accuracy_percent: float | None = None
    """By the labels; None: there are none."""
    agreement_percent: float = 0.0
    """Of the samples: answers as the original's."""
    deviation_mean: float = 0.0
    deviation_max: float = 0.0
    run_ms_p50: float = 0.0
    run_ms_p99: float = 0.0
    memory_bytes: int | None = None
    worse_than: str = ""
    """Another form that is at least as good in everything and better in something."""
    failed: str = ""
    """Why it could not be made or run."""


class Study(Struct, frozen=True):
    """All forms of a model, measured in one run."""

    model: str
    metric: str
    made_with: int
    """Samples for the scales of numbers; none of them is among the others."""
    judged_by: int
    labelled: int
    threads: int
    forms: tuple[Figures, ...]
    """The original first."""


class Wish(Struct, frozen=True):
    """What is asked for."""

    model: Path
    data: Path
    out: Path
    labels: Path | None = None
    script: Script | None = None
    metric: str = "auto"
    calibration: int = 50
    threads: int = 1
    only: tuple[str, ...] = ()


def study(wish: Wish) -> Study:
    """Make variants in the folder `out` and measure them. Raises UserError."""
    check_model(wish.model)
    samples = read_samples(wish.data, wish.script, wish.labels)
    made_with, judged_by = divide(samples, wish.calibration)
    original = open_session(wish.model, wish.threads)
    decode = wish.script.decode if wish.script else None
    metric = metric_of(wish.metric, outputs_of(original, judged_by[0]), decode)
    files, failed = _make(wish, made_with)
    sessions = {ORIGINAL: original}
    for name in list(files):
        try:
            session = open_session(files[name], wish.threads)
            outputs_of(session, judged_by[0])
        except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
            failed[name] = f"it does not run: {' '.join(str(error).split())[:300]}"
            files.pop(name).unlink(missing_ok=True)
        else:
            sessions[name] = session
    courses = race(sessions, judged_by, metric)
    forms = [_figures(wish, name, files, courses[name], judged_by[0]) for name in sessions]
    forms += [Figures(way.name, way.about, failed=failed[way.name])
              for way in _wanted(wish) if way.name in failed]  # fmt: skip
    labelled = courses[ORIGINAL].labelled
    done = Study(
        wish.model.name, metric.name, len(made_with), len(judged_by), labelled, wish.threads,
        tuple(_ranked(forms)),
    )  # fmt: skip
    (wish.out / "variants.toml").write_text(fragment(done), encoding="utf-8")
    return done


def _wanted(wish: Wish) -> list[Way]:
    known = [way.name for way in WAYS]
    for name in wish.only:
        if name not in known:
            raise UserError(f"there is no variant {name!r}: there are {', '.join(known)}")
    return [way for way in WAYS if not wish.only or way.name in wish.only]


def _make(wish: Wish, samples: list[Sample]) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the files that could be made, and why others could not."""
    wanted = _wanted(wish)
    try:
        wish.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{wish.out}: cannot be made: {error.strerror}") from None
    files: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for way in wanted:
        target = wish.out / f"{wish.model.stem}.{way.name}.onnx"
        why = make(way, wish.model, target, samples)
        if why:
            failed[way.name] = f"it cannot be made: {why}"
        else:
            files[way.name] = target
    return files, failed


def _figures(
    wish: Wish, name: str, files: dict[str, Path], course: Course, sample: Sample
) -> Figures:
    path = files.get(name, wish.model)
    way = next((one for one in WAYS if one.name == name), None)
    runs = len(course.took_ms)
    took = sorted(course.took_ms)
    return Figures(
        name,
        way.about if way else "the model as it is",
        path.name,
        path.stat().st_size,
        way.bits if way else FLOAT_BITS,
        100 * course.right / course.labelled if course.labelled else None,
        100 * course.same / runs,
        course.mean / runs,
        course.most,
        took[ceil(0.5 * runs) - 1],
        took[ceil(0.99 * runs) - 1],
        memory_bytes(path, sample, wish.threads),
    )


def _ranked(forms: list[Figures]) -> list[Figures]:
    """Note for each form one that makes it needless."""
    made = [one for one in forms if not one.failed]
    ranked = []
    for one in forms:
        other = next((other for other in made if not one.failed and beats(other, one)), None)
        ranked.append(replace(one, worse_than=other.name) if other else one)
    return ranked


def beats(one: Figures, other: Figures) -> bool:
    """Whether a form is at least as good in all and better in something than another."""
    mine, theirs = _costs(one), _costs(other)
    if one is other or any(a > b * (1 + TIE) for a, b in zip(mine, theirs, strict=True)):
        return False
    right, wrong = _quality(one), _quality(other)
    better = any(a < b * (1 - TIE) for a, b in zip(mine, theirs, strict=True))
    return right >= wrong and (better or right > wrong)


def _costs(one: Figures) -> tuple[float, ...]:
    return one.run_ms_p50, one.size_bytes, one.memory_bytes or 0


def _quality(one: Figures) -> float:
    return one.agreement_percent if one.accuracy_percent is None else one.accuracy_percent


def fragment(done: Study) -> str:
    """Return what a use case may say of the variants, as TOML for its task."""
    first = done.forms[0]
    lines = [
        f"# Variants of {done.model}, judged by {done.judged_by} samples that none was made with",
        f"# (metric {done.metric}, {done.threads} thread); artifacts lie beside this file.",
        f"# The task itself: {_measured(first)}",
    ]
    for one in done.forms[1:]:
        if one.failed:
            lines.append(f"# {one.name}: {one.failed}")
        elif one.worse_than:
            lines.append(f"# {one.name} is left out: {one.worse_than} is as good or better in all")
        else:
            digest = json.dumps(one.file, ensure_ascii=False)
            lines += ["", "[[services.tasks.variants]]", f'name = "{one.name}"',
                      f"artifact = {digest}", *_fields(one)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _fields(one: Figures) -> list[str]:
    lines = []
    if one.accuracy_percent is not None:
        lines.append(f"accuracy_percent = {one.accuracy_percent:.2f}")
    lines += [f"expected_ms = {one.run_ms_p50:.2f}", f"precision_bits = {one.precision_bits}"]
    if one.accuracy_percent is None:
        lines.append(f"# answers as the original's: {one.agreement_percent:.2f} %; no labels, "
                     "so no accuracy is stated")  # fmt: skip
    return lines


def _measured(one: Figures) -> str:
    return ", ".join(line for line in _fields(one) if not line.startswith("#"))
