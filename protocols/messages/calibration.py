"""What a program costs: measured on a node before it is chosen, and told on from every run.

A calibration runs a program in an instance that serves nobody, within a budget of time and beside
what the node does; runs in service are summed up by the TS. Both go to the TA, which chooses.
"""

from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Shape, Text
from protocols.errors import Blame
from protocols.manifest import MAX_PORTS, ArtifactRef, Dtype, Manifest

MAX_RUNS: Final = 4
"""Sizes at which one calibration measures."""

Milliseconds = Annotated[float, Meta(ge=0, le=3_600_000)]


class CalibrationInput(Part, frozen=True):
    """The value of one port in a calibration."""

    port: Name
    """The input that it fills."""
    dtype: Dtype
    shape: Shape
    """Without -1."""
    sample: ArtifactRef | None = None
    """Its bytes, dense and little-endian; null: zeros."""


class Calibrate(Message, tag="calibrate", frozen=True):
    """TA to TS, and on to a node: measure a program there. Answered by `Calibrated`."""

    number: Id
    """Named by the answer."""
    anchor: Name
    """Who asks."""
    node: Name
    task: Name
    """For which it is measured."""
    manifest: Manifest
    provider: str = ""
    """ONNX execution provider; empty: the node's choice."""
    runs: Annotated[
        tuple[Annotated[tuple[CalibrationInput, ...], Meta(max_length=MAX_PORTS)], ...],
        Meta(max_length=MAX_RUNS),
    ] = ()
    """The inputs of each run, smallest first."""
    budget_ms: Annotated[int, Meta(ge=1, le=60_000)] = 5000
    """What the calibration may take from its start; what is not measured by then is left out."""


class Measured(Part, frozen=True):
    """A run of a calibration."""

    input_bytes: Count
    """Of all inputs together."""
    run_ms: Milliseconds
    """Of several runs the median."""


class Calibrated(Message, tag="calibrated", frozen=True):
    """A node to its TS, and on to the TA that asked: what was measured, or why nothing."""

    number: Id
    """Of the `Calibrate`."""
    anchor: Name
    """As in that."""
    node: Name
    runs: Annotated[tuple[Measured, ...], Meta(max_length=MAX_RUNS)] = ()
    """Those that the time allowed."""
    start_ms: Milliseconds | None = None
    """From the form on disk to the first answer, beyond a run."""
    wake_ms: Milliseconds | None = None
    """From a process that holds the program to the first answer, beyond a run."""
    memory_bytes: Count | None = None
    """Of the instance when it had run."""
    held_bytes: Count | None = None
    """Of the process that holds the program while no instance is there."""
    refused: Text = ""
    """Why it was not measured; empty: it was."""
    blame: Blame | None = None
    """Whose fault that is."""
    passing: bool = False
    """Whether the reason may pass: the node had no room, or was being emptied."""


class RunFigures(Message, tag="run-figures", frozen=True):
    """TS to TA: how a task that has a choice has run on a node since this was last said."""

    task: Name
    node: Name
    variant: str = ""
    """Which program; empty: the manifest of the specification."""
    provider: str = ""
    """As it was assigned."""
    runs: Count = 0
    """How many there were."""
    run_ms: Milliseconds = 0.0
    """Their mean, without what the node's load added."""
    input_bytes: Annotated[float, Meta(ge=0)] = 0.0
    """Their mean."""
    memory_bytes: Count | None = None
    """Of the instance, as last measured."""
    per_s: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    """How many requests came in a second."""
