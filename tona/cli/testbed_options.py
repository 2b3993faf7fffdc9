"""Options that the commands of `tona testbed` share."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from typer import Option

from tona.testbed.choices import SWITCH_MAX_MS, Address, Ask, By, Radios

if TYPE_CHECKING:
    from tona.testbed.plan import Spec

CELLS: Final = 3
NODES: Final = 6


class Mode(StrEnum):
    """Where a testbed's traffic goes."""

    NETNS = "netns"
    LOOPBACK = "loopback"


Cells = Annotated[int, Option(min=1, max=16, help="Cells, each with gateway, broker and TS.")]
Nodes = Annotated[int, Option(min=1, max=32, help="Nodes that move among them.")]
InMode = Annotated[
    Mode,
    Option(
        help="netns: a network for each, needs root; loopback: a proxy per cell, needs nothing."
    ),
]
Folder = Annotated[
    Path | None, Option("--data", help="Its folder; else ~/.local/state/tona/testbed.")
]
InRadios = Annotated[
    Radios, Option(help="Links that a node has at once; both: half of the nodes have one.")
]
InAddress = Annotated[
    Address,
    Option(
        help="Of nodes with one radio, in another cell. keep: as in a mobile network, or a Wi-Fi "
        "of many access points; change: each cell is a network of its own, as on loopback."
    ),
]
SwitchMs = Annotated[
    float,
    Option(
        min=0,
        max=SWITCH_MAX_MS,
        help="What a single radio takes from one cell to the next: LTE 30 to 50, 5G NR less.",
    ),
]
WhoMoves = Annotated[
    By,
    Option(
        "--by",
        help="Who asks for handovers: the trace, when its cell changes; signals: whoever "
        "controls mobility, by what nodes measure; restart: nobody, agents start anew.",
    ),
]
Seed = Annotated[int, Option(help="Of the order of windows, and of losses.")]


Control = Annotated[
    bool,
    Option(
        "--control/--no-control",
        help="Replay the radio of each window with a change once more without a handover: what "
        "of the gaps the radio makes alone (`radio_ratio`). Half as long again.",
    ),
]
InAsk = Annotated[
    Ask,
    Option(
        help="own: the task is on the node, which asks it itself; device: it is on the node, "
        "asked from afar; edge: it is at the edge, asked beside the node."
    ),
]


def spec_of(
    cells: int,
    nodes: int,
    radios: Radios,
    address: Address,
    by: By,
    seed: int,
    mode: Mode,
    switch_ms: float,
) -> "Spec":
    """Return what is asked for."""
    from tona.testbed.plan import Spec  # noqa: PLC0415 - slow to import

    return Spec(
        cells=cells,
        nodes=nodes,
        one_radio=radios.alone(nodes),
        keep_address=address is Address.KEEP and mode is Mode.NETNS,
        seed=seed,
        switch_ms=switch_ms,
        decides=by.decides,
    )
