"""Prometheus' text format (version 0.0.4), from plain numbers. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

from protocols.errors import TonaBug

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NAME: Final = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]*$")

Labels = tuple[tuple[str, str], ...]


class Metric(Struct, frozen=True):
    """One family: `samples` maps labels, as pairs of name and value, to a number."""

    name: str
    help: str
    samples: Mapping[Labels, float]
    kind: str = "gauge"
    """`counter` or `gauge`."""


def render(metrics: Iterable[Metric]) -> str:
    """Return the exposition of the metrics. Raises TonaBug for a name that is none."""
    lines: list[str] = []
    for metric in metrics:
        _check(metric.name)
        lines.append(f"# HELP {metric.name} {_escape(metric.help, quote=False)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for labels, value in metric.samples.items():
            pairs = ",".join(f'{_check(name)}="{_escape(text)}"' for name, text in labels)
            lines.append(
                f"{metric.name}{{{pairs}}} {value!r}" if pairs else f"{metric.name} {value!r}"
            )
    return "\n".join(lines) + "\n"


def _check(name: str) -> str:
    if _NAME.match(name) is None:
        raise TonaBug(f"{name!r} is no name of a metric or label")
    return name


def _escape(text: str, *, quote: bool = True) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped
