"""What two answers of a model have to have in common to count as the same; pure."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from protocols.errors import UserError

BLANK: Final = 0
"""Class of CTC that stands for nothing."""
CLOSE: Final = 0.01
"""Of the spread of the original's values: what `close` lets the mean differ by."""
MIN_CLASSES: Final = 16
"""Along the last of three axes: fewer look like boxes rather than like steps of a text."""
EPSILON: Final = 1e-12

Outputs = dict[str, Any]
METRICS: Final = {
    "top1": "the class with the highest value of the first output is the same",
    "sequence": "the text of the first output, by CTC's best path, is the same",
    "close": "the mean difference is at most 1 % of the spread of the original's values",
    "exact": "what the script's decode() makes of the outputs is the same",
}


class Metric(NamedTuple):
    """How answers are compared."""

    name: str
    read: Callable[[Outputs], str] | None
    """What an answer says; None: answers have no such word, they are close or not."""

    def same(self, outputs: Outputs, original: Outputs) -> bool:
        """Whether two answers say the same."""
        if self.read is not None:
            return self.read(outputs) == self.read(original)
        return all(_close(outputs[name], original[name]) for name in original)


def metric_of(
    name: str, outputs: Outputs, decode: Callable[[Outputs], str] | None = None
) -> Metric:
    """Return the metric of a name; of `auto` the one that fits these outputs. Raises UserError."""
    if name == "auto":
        name = "exact" if decode else _guess(outputs)
    if name == "exact" and decode is None:
        raise UserError("the metric exact needs a --script with decode(outputs)")
    if name not in METRICS:
        raise UserError(f"there is no metric {name!r}: it is auto, {', '.join(METRICS)}")
    readers: dict[str, Callable[[Outputs], str] | None] = {
        "top1": _top1,
        "sequence": _sequence,
        "close": None,
        "exact": decode,
    }
    return Metric(name, readers[name])


def deviation(outputs: Outputs, original: Outputs) -> tuple[float, float]:
    """Return mean and largest difference over all values; infinite where shapes differ."""
    mean, most, count = 0.0, 0.0, 0
    for name, wanted in original.items():
        if not np.issubdtype(wanted.dtype, np.number) or wanted.size == 0:
            continue
        if outputs[name].shape != wanted.shape:
            return float("inf"), float("inf")
        apart = np.abs(outputs[name].astype(np.float64) - wanted.astype(np.float64))
        mean += float(apart.sum())
        most = max(most, float(apart.max()))
        count += wanted.size
    return (mean / count if count else 0.0), most


def _guess(outputs: Outputs) -> str:
    first = next(iter(outputs.values()))
    if not np.issubdtype(first.dtype, np.floating):
        return "close"
    if first.ndim == 3 and first.shape[-1] >= MIN_CLASSES:  # noqa: PLR2004 - row, step, class
        return "sequence"
    return "top1" if first.ndim <= 2 and first.shape[-1:] > (1,) else "close"  # noqa: PLR2004 - row, class


def _top1(outputs: Outputs) -> str:
    first = next(iter(outputs.values()))
    return " ".join(str(one) for one in np.atleast_1d(first.argmax(-1)).ravel())


def _sequence(outputs: Outputs) -> str:
    first = next(iter(outputs.values()))
    rows = first.argmax(-1).reshape(-1, first.shape[-2])
    texts = []
    for row in rows:
        kept = row[np.flatnonzero(np.diff(row, prepend=-1))]
        texts.append(" ".join(str(one) for one in kept if one != BLANK))
    return "\n".join(texts)


def _close(found: Any, wanted: Any) -> bool:
    if found.shape != wanted.shape:
        return False
    if not np.issubdtype(wanted.dtype, np.number):
        return bool((found == wanted).all())
    if wanted.size == 0:
        return True
    apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64)).mean()
    spread = float(wanted.max()) - float(wanted.min())
    return bool(apart <= CLOSE * max(spread, EPSILON))
