"""What a profile says: how a board is recognised, where it is read, what it may run.

Paths are those of the live system (`/sys/...`, `/proc/...`) and may hold `*`, `?` and `[...]`; the
reader puts them under its root. A path of an accelerator may start with `./`: it then lies in the
folder that the accelerator's `at` has found.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct, field

MAX_SOURCES: Final = 16
Text = Annotated[str, Meta(max_length=1024)]
Glob = Annotated[str, Meta(min_length=1, max_length=512)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=MAX_SOURCES)]
Globs = Annotated[tuple[Glob, ...], Meta(max_length=MAX_SOURCES)]
Patterns = Annotated[dict[str, Text], Meta(max_length=8)]


class Parse(StrEnum):
    """How the text of a file becomes a number."""

    NUMBER = "number"
    """The first number of the file, times `scale`."""
    LOAD_AT = "load-at"
    """Rockchip's `12@300000000Hz`: the percentage before the sign."""
    PERCENTS = "percents"
    """The mean of every `12%` in the text (RKNPU names each core)."""
    BUSY = "busy"
    """A counter of busy time; `scale` turns it into milliseconds; the share of the time between."""
    IDLE = "idle"
    """A counter of idle time, in the same way; the share that is left."""
    RATE = "rate"
    """A counter; its growth per second, times `scale` (energy in microjoule: watt at 1e-6)."""
    RISES = "rises"
    """A counter of events; true when it has grown since the sample before."""
    MASK = "mask"
    """A hexadecimal word; true when a bit of `mask` is set."""
    NONZERO = "nonzero"
    """True when the number is above 0."""
    RAILS = "rails"
    """A hwmon folder: millivolt times milliampere of the channels labelled as in `rails`, in W."""
    V3D = "v3d"
    """Broadcom's `gpu_stats`: the busiest queue's share of the time between."""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """One place where a quantity can be read. Of several the first that gives a value counts."""

    path: Glob
    parse: Parse = Parse.NUMBER
    scale: float = 1.0
    where: Patterns = field(default_factory=dict)
    """File beside `path` (in it, for `rails`) -> pattern of its content."""
    mask: Annotated[int, Meta(ge=0)] = 0
    rails: Texts = ()


Sources = Annotated[tuple[Source, ...], Meta(max_length=MAX_SOURCES)]


class AcceleratorKind(StrEnum):
    """The kinds of accelerator that a task can ask for."""

    GPU = "gpu"
    NPU = "npu"


class Accelerator(Struct, frozen=True, forbid_unknown_fields=True):
    """A GPU or NPU, as often as `at` finds it."""

    kind: AcceleratorKind
    name: Text
    at: Globs
    """Folders that exist when the accelerator does; the first pattern that finds any counts."""
    where: Patterns = field(default_factory=dict)
    """File in the folder -> pattern of its content."""
    optional: bool = False
    """Not every machine of this profile has it: then it is not reported as absent."""
    nvml: bool = False
    """Read through NVIDIA's management library; the folder's name is the PCI address."""
    providers: Texts = ()
    """ONNX execution providers that reach it, best first."""
    period_ms: Annotated[int, Meta(ge=20, le=60_000)] = 200
    """Reading more often costs and says nothing new."""
    load: Sources = ()
    memory_used: Sources = ()
    memory_total: Sources = ()
    temperature: Sources = ()
    power: Sources = ()


class Pci(Struct, frozen=True, forbid_unknown_fields=True):
    """A device on the PCI bus."""

    vendor: Annotated[int, Meta(ge=0, le=0xFFFF)]
    device: Annotated[int, Meta(ge=0, le=0xFFFF)] | None = None
    kind: Annotated[int, Meta(ge=0, le=0xFFFF)] | None = None
    """Class and subclass, such as 0x0302 for a 3D controller."""


class Match(Struct, frozen=True, forbid_unknown_fields=True):
    """How the board is recognised, the most specific first: device tree, DMI, PCI, architecture."""

    arch: Annotated[tuple[Text, ...], Meta(max_length=8)]
    """Machine names of uname. Needed: nothing else counts on another one; none: never detected."""
    compatible: Texts = ()
    """Device tree `compatible` strings, any of them."""
    model: Texts = ()
    """Patterns of the device tree's `model`."""
    dmi: Annotated[tuple[Patterns, ...], Meta(max_length=MAX_SOURCES)] = ()
    """Tables of DMI field -> pattern; all fields of one table have to fit."""
    pci: Annotated[tuple[Pci, ...], Meta(max_length=64)] = ()
    rank: int = 0
    """Decides between profiles that fit equally well; the higher wins."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What tasks may take together unless the node's own configuration says otherwise."""

    task_memory_share: Annotated[float, Meta(gt=0, le=0.95)] = 0.5
    """Of the machine's memory."""
    max_instances: Annotated[int, Meta(ge=1, le=4096)] = 16
    sample_ms: Annotated[int, Meta(ge=20, le=3_600_000)] = 1000


class Profile(
    Struct, frozen=True, forbid_unknown_fields=True, rename={"accelerators": "accelerator"}
):
    """A board: recognised by `match`, read at the sources, run within the limits."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    title: Text
    providers: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MAX_SOURCES)]
    """ONNX execution providers in order of preference."""
    match: Match = Match(arch=())
    """Without an architecture the profile is never detected, only named."""
    interpreter: Text = ""
    """Python of the ONNX executor; empty: the daemon's own."""
    limits: Limits = Limits()
    temperature: Sources = ()
    throttled: Sources = ()
    """Every source counts here: throttled when any of them says so."""
    power: Sources = ()
    battery: Sources = ()
    accelerators: Annotated[tuple[Accelerator, ...], Meta(max_length=MAX_SOURCES)] = ()
    notes: Texts = ()
    """For a person: what to install or to know."""
