"""What a program costs on each node: measured there, measured on such a board, or declared.

A run takes `a + b x` for `x` bytes of input. The line is fitted with forgetting, so that a lasting
change is followed; a run far off the line counts only as far as the line's usual spread allows, so
that a single one changes little. The slope is fitted only while sizes differ. Pure.
"""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Final, NamedTuple

import numpy as np

from controller.anchor.placement.columns import Columns, Floats, Ints
from controller.anchor.placement.rules import Program
from controller.records import FigureRecord, Line
from protocols.manifest import ExecutorKind
from protocols.messages.calibration import Measured

MOST: Final = 64.0
"""Runs after which a line has forgotten what was before, at the latest."""
AT_ONCE: Final = 16.0
"""Runs of one word at most, however many there were."""
ENOUGH: Final = 4.0
"""Runs before a line judges what is far off it."""
FAR: Final = 4.0
"""Times the spread that a run may be off the line."""
LEAST_SPREAD: Final = 0.05
"""Of a run: no line is truer."""
DIFFERENT: Final = 0.1
"""Deviation of sizes, of their mean, from which they tell a slope."""
CALIBRATION_RUNS: Final = 4.0
"""What each size of a calibration counts for."""
START_MS: Final = {ExecutorKind.WASM: 3.0, ExecutorKind.ONNX: 300.0, ExecutorKind.CONTAINER: 400.0}
"""From the form on disk to an answer, where it was never measured."""
WAKE_MS: Final = {ExecutorKind.WASM: 1.0, ExecutorKind.ONNX: 10.0, ExecutorKind.CONTAINER: 400.0}
"""From the process that holds the program, likewise."""
HELD_SHARE: Final = 0.5
"""Of an instance's memory, what the process that holds its program is taken to have."""
RANK: Final = 0.05
"""Of a run that is not measured: what each provider is slower than the one before it on a node."""
DECLARED, BOARD, NODE = range(3)
SOURCES: Final = ("declared", "of its board", "measured")

Known = Mapping[str, FigureRecord]
"""What is known of one program with one provider, by node."""


def learnt(
    line: Line, input_bytes: float, run_ms: float, runs: float, *, believed: bool = False
) -> Line:
    """Return a line with some more runs, given their means; `believed`: none is far off."""
    weight = min(max(runs, 1.0), AT_ONCE)
    seen, spread = run_ms, line.spread
    if line.weight >= ENOUGH and not believed:
        expected = predicted(line, input_bytes)
        band = FAR * max(spread, LEAST_SPREAD) * expected
        seen = min(expected + band, max(expected - band, run_ms))
        share = weight / (MOST / 2 + weight)
        off = abs(seen - expected) / expected if expected > 0 else 0.0
        spread += share * (off - spread)
    kept = min(line.weight, MOST - weight)
    share = weight / (kept + weight)
    off_bytes, off_ms = input_bytes - line.mean_bytes, seen - line.mean_ms
    mean_bytes = line.mean_bytes + share * off_bytes
    mean_ms = line.mean_ms + share * off_ms
    xx = (1 - share) * (line.xx + share * off_bytes * off_bytes)
    xy = (1 - share) * (line.xy + share * off_bytes * off_ms)
    slope = line.slope
    if xx > 0 and sqrt(xx) >= DIFFERENT * mean_bytes:
        slope = xy / xx
    # Neither no bytes nor more of them take less than nothing.
    steepest = mean_ms / mean_bytes if mean_bytes > 0 else 0.0
    return Line(
        min(MOST, kept + weight),
        mean_bytes,
        mean_ms,
        xx,
        xy,
        min(max(slope, 0.0), max(steepest, 0.0)),
        spread,
    )


def predicted(line: Line, input_bytes: float) -> float:
    """Return what a run with so many bytes takes, ms."""
    return max(0.0, line.mean_ms + line.slope * (input_bytes - line.mean_bytes))


def fitted(runs: Sequence[Measured]) -> Line:
    """Return the line of a calibration."""
    line = Line()
    for one in runs:
        line = learnt(line, one.input_bytes, one.run_ms, CALIBRATION_RUNS, believed=True)
    return line


class Cost(NamedTuple):
    """What one program with one provider costs, for each node; times in ms, memory in bytes."""

    run: Floats
    start: Floats
    """From the form on disk."""
    wake: Floats
    """From the process that holds the program."""
    memory: Floats
    held: Floats
    """By that process."""
    source: Ints
    """How the run is known: `DECLARED`, `BOARD` or `NODE`."""
    runs: Floats
    """How many runs that rests on."""
    refused: Mapping[int, str]
    """Nodes that cannot run it, as a calibration has found, with the reason."""


def cost_of(program: Program, input_bytes: float, columns: Columns, known: Known) -> Cost:
    """Return what is known of a program on the nodes of a snapshot."""
    size, kind = len(columns.names), program.manifest.kind
    declared = program.expected_ms * (1.0 + RANK * program.rank)
    memory = float(program.memory_bytes)

    def everywhere(value: float) -> Floats:
        return np.full(size, value)

    cost = Cost(
        run=everywhere(declared),
        start=everywhere(START_MS[kind]),
        wake=everywhere(WAKE_MS[kind]),
        memory=everywhere(memory),
        held=everywhere(HELD_SHARE * memory),
        source=np.full(size, DECLARED),
        runs=everywhere(0.0),
        refused={},
    )
    if not known:
        return cost
    refused: dict[int, str] = {}
    boards: dict[str, list[FigureRecord]] = {}
    for one in known.values():
        boards.setdefault(one.board, []).append(one)
    for board, some in boards.items():
        good = [one for one in some if one.line.weight > 0]
        there = columns.boards.get(board)
        if good and there is not None:
            typical = sorted(good, key=lambda one: predicted(one.line, input_bytes))
            _put(cost, there, typical[len(typical) // 2], input_bytes, BOARD)
    for node, one in known.items():
        at = columns.index.get(node)
        if at is None:
            continue
        if one.line.weight > 0:
            _put(cost, at, one, input_bytes, NODE)
        elif one.refused:
            refused[at] = one.refused
    return cost._replace(refused=refused)


def _put(cost: Cost, at: int | Ints, one: FigureRecord, input_bytes: float, source: int) -> None:
    cost.run[at] = predicted(one.line, input_bytes)
    cost.runs[at] = one.runs
    cost.source[at] = source
    for values, found in (
        (cost.start, one.start_ms),
        (cost.wake, one.wake_ms),
        (cost.memory, one.memory_bytes),
        (cost.held, one.held_bytes),
    ):
        if found is not None:
            values[at] = found
