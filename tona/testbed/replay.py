"""From a window of a trace to links of the testbed: which cell is which, and how good it is. Pure.

- **Cells.** A window begins in the cell in which the node is. Each cell that the trace comes to has
  the next one of the testbed, in order after the one before; one that it returns to keeps its own.
- **Neighbour.** The trace says how strong the best neighbour is, and not which cell that is. It is
  taken for the cell that the trace moves to next; after the last move, for the one it came from.
  Where it is missing, the nearest row of the window that has it says it, or else the first row that
  is served by that cell.
- **Others** that the window has been in fade by 3 dB a second from what was heard of them last,
  until they are weaker than -125 dBm; the rest is not heard: those links are down.
- **Link.** CQI is what the trace says of the serving cell. Another one has the same, and a step
  more or less for each 10 dB that it is stronger or weaker: of all rules that were tried this came
  near to what the trace says once it serves. Where there is none it is 1 to 15 evenly over -120 to
  -80 dBm. The rate is the
  spectral efficiency of that CQI (TS 36.213, table 7.2.3-1) in 20 MHz, half of it upwards, and
  never less than the trace carried. One way takes 8 ms and 1 ms more for each step of CQI below 15,
  and jitter adds up to 2 ms and half of one for each step. Below -110 dBm packets are lost, up to
  1 % at -125 dBm, for a radio bearer repeats most of what is lost.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from tona.testbed.lane import DOWN, Conditions
from tona.testbed.traces import Sample, Window

EFFICIENCY: Final = (
    0.1523, 0.2344, 0.3770, 0.6016, 0.8770, 1.1758, 1.4766, 1.9141,
    2.4063, 2.7305, 3.3223, 3.9023, 4.5234, 5.1152, 5.5547,
)  # fmt: skip
"""Bits per second and hertz by CQI, from 1."""
BANDWIDTH_MHZ: Final = 20.0
UPWARDS: Final = 0.5
CQI_BEST: Final = 15
RSRP_WORST_DBM: Final = -120.0
RSRP_BEST_DBM: Final = -80.0
STEP_DB: Final = 10.0
"""Of RSRP, for one step of CQI: so the two go together in drives that report both."""
DELAY_MS: Final = 8.0
DELAY_STEP_MS: Final = 1.0
JITTER_MS: Final = 2.0
JITTER_STEP_MS: Final = 0.5
LOSS_BELOW_DBM: Final = -110.0
LOSS_AT_DBM: Final = -125.0
LOSS_PERCENT: Final = 1.0
FADE_DB_PER_S: Final = 3.0
MIDST_DBM: Final = -85.0
"""Of a cell that is heard well."""


class Signal(Struct, frozen=True, omit_defaults=True):
    """What a node's radio says of a cell."""

    rsrp_dbm: float
    rsrq_db: float | None = None
    snr_db: float | None = None


class Step(Struct, frozen=True):
    """From `at_s` of its window on."""

    at_s: float
    serving: str
    """The cell by which the trace was served."""
    signals: dict[str, Signal]
    """Of every cell that is heard."""
    links: dict[str, Conditions]
    """Of every cell of the testbed."""

    def carried(self, serving: str) -> dict[str, Conditions]:
        """Return the links of a node with one radio, which is at this cell: the others are down."""
        return {cell: one if cell == serving else DOWN for cell, one in self.links.items()}


def steps(window: Window, here: str, cells: Sequence[str]) -> list[Step]:
    """Return what happens in a window to a node that is in the cell `here`."""
    samples = window.samples
    served = _served(samples, here, cells)
    made: list[Step] = []
    known: dict[str, tuple[float, Signal]] = {}
    for number, (sample, serving, other) in enumerate(
        zip(samples, served, _others(served, cells), strict=True)
    ):
        signals = {serving: Signal(sample.rsrp_dbm, sample.rsrq_db, sample.snr_db)}
        links = dict.fromkeys(cells, DOWN)
        links[serving] = link(sample)
        heard = _neighbour(samples, served, number, other) if other else None
        if heard is not None:
            signals[other] = heard
        for cell, (at_s, last) in known.items():
            faded = last.rsrp_dbm - FADE_DB_PER_S * (sample.at_s - at_s)
            if cell not in signals and faded >= LOSS_AT_DBM:
                signals[cell] = Signal(faded)
        known.update(
            {cell: (sample.at_s, signals[cell]) for cell in (serving, other) if cell in signals}
        )
        links.update(
            {
                cell: conditions(one.rsrp_dbm, beside(sample, one.rsrp_dbm))
                for cell, one in signals.items()
                if cell != serving
            }
        )
        made.append(Step(sample.at_s if number else 0.0, serving, signals, links))
    return made


def still(here: str, cells: Sequence[str]) -> Step:
    """Return what a node meets that is in the midst of all cells."""
    links = dict.fromkeys(cells, conditions(MIDST_DBM))
    return Step(0.0, here, dict.fromkeys(cells, Signal(MIDST_DBM)), links)


def link(sample: Sample) -> Conditions:
    """Return the link to the cell that serves."""
    return conditions(sample.rsrp_dbm, sample.cqi, sample.down_mbit_per_s, sample.up_mbit_per_s)


def beside(sample: Sample, rsrp_dbm: float) -> int | None:
    """Return the CQI of a cell that does not serve; None: the trace has none to go by."""
    if sample.cqi is None or not 1 <= sample.cqi <= CQI_BEST:
        return None
    more = round((rsrp_dbm - sample.rsrp_dbm) / STEP_DB)
    return min(CQI_BEST, max(1, sample.cqi + more))


def conditions(
    rsrp_dbm: float, cqi: int | None = None, down_mbit: float = 0.0, up_mbit: float = 0.0
) -> Conditions:
    """Return the link that a signal makes."""
    if cqi is None or not 1 <= cqi <= CQI_BEST:
        share = (rsrp_dbm - RSRP_WORST_DBM) / (RSRP_BEST_DBM - RSRP_WORST_DBM)
        cqi = round(1 + (CQI_BEST - 1) * min(1.0, max(0.0, share)))
    rate = EFFICIENCY[cqi - 1] * BANDWIDTH_MHZ
    below = CQI_BEST - cqi
    faded = (LOSS_BELOW_DBM - rsrp_dbm) / (LOSS_BELOW_DBM - LOSS_AT_DBM)
    return Conditions(
        down_mbit_per_s=max(rate, down_mbit),
        up_mbit_per_s=max(rate * UPWARDS, up_mbit),
        delay_ms=DELAY_MS + DELAY_STEP_MS * below,
        jitter_ms=JITTER_MS + JITTER_STEP_MS * below,
        loss_percent=LOSS_PERCENT * min(1.0, max(0.0, faded)),
    )


def _served(samples: Sequence[Sample], here: str, cells: Sequence[str]) -> list[str]:
    """Return, for each sample, which cell of the testbed serves."""
    names = {samples[0].cell: here}
    served = [here]
    for before, after in pairwise(one.cell for one in samples):
        # Where the trace has more cells than there are here, it still cannot move to where it is.
        if after not in names or (after != before and names[after] == served[-1]):
            names[after] = following(served[-1], cells)
        served.append(names[after])
    return served


def following(cell: str, cells: Sequence[str]) -> str:
    """Return the next cell in order."""
    return cells[(cells.index(cell) + 1) % len(cells)]


def _others(served: Sequence[str], cells: Sequence[str]) -> list[str]:
    """Return, for each sample, the cell that its neighbour is; empty: there is no other one."""
    found = []
    left = following(served[0], cells)
    for number, cell in enumerate(served):
        if number and served[number - 1] != cell:
            left = served[number - 1]
        coming = next((one for one in served[number:] if one != cell), left)
        found.append(coming if coming != cell else "")
    return found


def _neighbour(
    samples: Sequence[Sample], served: Sequence[str], number: int, other: str
) -> Signal | None:
    near = sorted(range(len(samples)), key=lambda one: abs(one - number))
    for one in near:
        sample = samples[one]
        if sample.neighbour_rsrp_dbm is not None:
            return Signal(sample.neighbour_rsrp_dbm, sample.neighbour_rsrq_db)
    for one in near:
        if served[one] == other:
            return Signal(samples[one].rsrp_dbm, samples[one].rsrq_db)
    return None
