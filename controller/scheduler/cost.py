"""What a run, a wait and a way will cost, learnt from what this fleet measures.

A run is looked up as near as it is known: this program on this node; on boards of its kind; on any
node, scaled by how fast this node is with other programs; what its author expects, scaled by how
that has turned out here. What a node's load adds is one factor, `1 + k u^2 / (1 - u)`, whose `k` is
learnt from runs of programs whose unloaded cost is known there. What else slows a node is its
*pace*: it follows quickly what all programs show there, while their own costs follow slowly, so a
program that has not run for a while is predicted as the node is now. Waits follow Allen and
Cunneen with Sakasegawa's approximation for several workers. Everything is forgotten by half-life,
and every estimate says how much it is worth.
"""

from collections.abc import Hashable
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct

HALF_LIFE_MS: Final = 300_000
MAX_WEIGHT: Final = 4096.0
"""A mean follows a change after about so many runs, however many there were before..."""
PACE_WEIGHT: Final = 24.0
"""...the pace of a node after so many..."""
LOAD_WEIGHT: Final = 256.0
"""...and what load adds after so many."""
MAX_MEANS: Final = 20_000
LEAST_MS: Final = 1e-6
"""What is said to have taken less was not measured."""
SETTLED_WEIGHT: Final = 32.0
SETTLED_SHARE: Final = 0.1
"""Once a program has run so often on a node, a run changes its own cost by this share only."""
KNOWN_WEIGHT: Final = 8.0
"""An estimate of so many runs is worth one half."""
BUSY: Final = 0.6
"""Load, as a share, above which a run says more about the load than about the program."""
BUSY_MAX: Final = 0.95
BUSY_PRESSURE: Final = 8.0
"""`u^2 / (1 - u)` at a load of 90 %."""
LOAD_FACTOR: Final = 0.1
LOAD_FACTOR_MAX: Final = 2.0
PARALLEL_SHARE: Final = 0.6
"""Of a model's run that more threads divide, until they have been tried."""
SATURATED: Final = 0.95
OVERLOAD_MS: Final = 20_000.0
"""Wait that a utilisation of 1 above saturation would add."""
PACKING_GUESS: Final = 0.6
LINK_VARIABILITY: Final = 0.5
"""Messages of one task come by chance and are of one size."""
_RUNS_COUNTED: Final = 32.0
_Key = TypeVar("_Key", bound=Hashable)
_OF_BOARD, _OF_FLEET, _CALIBRATED, _DECLARED = 0.7, 0.5, 0.3, 0.15


class Work(NamedTuple):
    """What is run, as far as it changes the cost."""

    digest: str
    provider: str = ""
    threads: int = 0
    decimation: int = 1


class Estimate(NamedTuple):
    """A cost and, from 0 to 1, how much it is worth."""

    ms: float
    confidence: float


class _Mean(Struct):
    """A mean that forgets."""

    value: float = 0.0
    weight: float = 0.0
    at_ms: int = 0
    most: float = MAX_WEIGHT

    def add(self, value: float, weight: float, now_ms: int) -> None:
        """Take in a value that stands for so many runs."""
        weight = min(weight, _RUNS_COUNTED)
        left = self.left(now_ms)
        self.value += (value - self.value) * weight / (left + weight)
        self.weight, self.at_ms = min(self.most, left + weight), now_ms

    def left(self, now_ms: int) -> float:
        """Return the weight that time has left."""
        return float(self.weight * 0.5 ** (max(0, now_ms - self.at_ms) / HALF_LIFE_MS))


class CostModel:
    """Learns and predicts; monotone: more load, more requests or fewer workers never cost less."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._runs: dict[tuple[Work, str], _Mean] = {}
        self._boards: dict[tuple[Work, str], _Mean] = {}
        self._fleet: dict[Work, _Mean] = {}
        self._speeds: dict[str, _Mean] = {}
        """Of each node: its runs relative to the fleet's."""
        self._paces: dict[str, _Mean] = {}
        """Of each node: what its runs take now, relative to what they usually take there."""
        self._kept_promises: dict[str, _Mean] = {}
        """Of each node, and of the fleet under the empty name: measured over expected."""
        self._load_factor = _Mean(LOAD_FACTOR, KNOWN_WEIGHT, 0, LOAD_WEIGHT)
        self._works: dict[str, set[Work]] = {}
        self._sent: dict[tuple[str, str], _Mean] = {}
        """By program and encoding: bytes sent over bytes made."""
        self._fetches: dict[str, _Mean] = {}
        """By node: bytes per ms of what it fetched."""

    # Runs.

    def slowdown(self, cpu_percent: float) -> float:
        """Return by what factor load slows a run."""
        return 1.0 + max(0.0, self._load_factor.value) * _pressure(cpu_percent)

    def learn_run(
        self,
        work: Work,
        node: str,
        board: str,
        run_ms: float,
        cpu_percent: float,
        runs: int,
        expected_ms: float | None = None,
    ) -> None:
        """Take in the mean of some runs under a load."""
        if run_ms < LEAST_MS or runs <= 0:
            return
        known = self._runs.get((work, node))
        left = known.left(self.now_ms) if known is not None else 0.0
        if known is not None and cpu_percent >= BUSY * 100 and left >= KNOWN_WEIGHT:
            usual_ms = known.value * self.pace(node)
            seen = (run_ms / usual_ms - 1.0) / _pressure(cpu_percent)
            # The more pressure, the less noise; what comes out below 0 evens out what lies above.
            weight = min(runs, KNOWN_WEIGHT) * min(1.0, _pressure(cpu_percent) / BUSY_PRESSURE)
            seen = min(LOAD_FACTOR_MAX, max(-LOAD_FACTOR_MAX, seen))
            self._load_factor.add(seen, weight, self.now_ms)
            return
        base_ms = run_ms / self.slowdown(cpu_percent)
        if known is None:
            base_ms /= self.pace(node)
        else:
            usual = _Mean(1.0, PACE_WEIGHT, self.now_ms, PACE_WEIGHT)
            self._add(self._paces, node, base_ms / known.value, runs, usual)
        weight = runs * SETTLED_SHARE if left >= SETTLED_WEIGHT else runs
        own = self._add(self._runs, (work, node), base_ms, weight)
        self._add(self._boards, (work, board), base_ms, weight)
        fleet = self._add(self._fleet, work, base_ms, weight)
        self._add(self._speeds, node, own.value / fleet.value, runs)
        if expected_ms:
            for name in (node, ""):
                self._add(self._kept_promises, name, own.value / expected_ms, runs)
        if len(self._works) < MAX_MEANS:
            self._works.setdefault(work.digest, set()).add(work)

    def run(
        self,
        work: Work,
        node: str,
        board: str,
        cpu_percent: float,
        expected_ms: float | None = None,
    ) -> Estimate | None:
        """Return what a run will take on a node under a load; None: nothing is known."""
        found = self._base(work, node, board)
        if found is None:
            found = self._related(work, node, board)
        if found is None and expected_ms:
            kept = self._kept_promises.get(node) or self._kept_promises.get("")
            if kept is None:
                found = Estimate(expected_ms, _DECLARED)
            else:
                found = Estimate(expected_ms * kept.value, _CALIBRATED)
        if found is None:
            return None
        factor = self.slowdown(cpu_percent) * self.pace(node)
        return Estimate(found.ms * factor, found.confidence)

    def pace(self, node: str) -> float:
        """Return what runs take on a node now, relative to what they usually take there."""
        found = self._paces.get(node)
        return found.value if found is not None else 1.0

    def _base(self, work: Work, node: str, board: str) -> Estimate | None:
        own = self._runs.get((work, node))
        if own is not None:
            return Estimate(own.value, self._confidence(own))
        alike = self._boards.get((work, board))
        if alike is not None:
            return Estimate(alike.value, self._confidence(alike) * _OF_BOARD)
        fleet = self._fleet.get(work)
        if fleet is None:
            return None
        speed = self._speeds.get(node)
        factor = speed.value if speed is not None else 1.0
        return Estimate(fleet.value * factor, self._confidence(fleet) * _OF_FLEET)

    def _related(self, work: Work, node: str, board: str) -> Estimate | None:
        """Look for the same program with other threads or reduction of its data."""
        best: Estimate | None = None
        for other in sorted(self._works.get(work.digest, ())):
            found = self._base(other, node, board)
            if other.provider == work.provider and found is not None:
                factor = thread_factor(work.threads) / thread_factor(other.threads)
                factor *= (other.decimation / work.decimation) ** 2
                guess = Estimate(found.ms * factor, found.confidence * _OF_FLEET)
                if best is None or guess.confidence > best.confidence:
                    best = guess
        return best

    def _confidence(self, mean: _Mean) -> float:
        left = mean.left(self.now_ms)
        return left / (left + KNOWN_WEIGHT)

    # Ways.

    def learn_sent(self, digest: str, encoding: str, made_bytes: int, sent_bytes: int) -> None:
        """Take in how much of what a program made has left its node."""
        # What stays on its node says nothing of how small it can be made.
        if made_bytes > 0 and sent_bytes > 0:
            self._add(self._sent, (digest, encoding), sent_bytes / made_bytes, 1)

    def packing(self, digest: str, encoding: str) -> float:
        """Return by what factor an encoding changes the bytes that a program's outputs take."""
        if not encoding:
            return 1.0
        packed, dense = self._sent.get((digest, encoding)), self._sent.get((digest, ""))
        if packed is None or dense is None or dense.value <= 0:
            return PACKING_GUESS
        return packed.value / dense.value

    def learn_fetch(self, node: str, fetched_bytes: float, fetch_ms: float) -> None:
        """Take in how long a node waited for a large value."""
        if fetched_bytes > 0 and fetch_ms >= LEAST_MS:
            self._add(self._fetches, node, fetched_bytes / fetch_ms, 1)

    def hop_ms(
        self,
        nodes: tuple[str, str],
        round_trips_ms: tuple[float, float],
        sent_bytes: float,
        speed_mbit_per_s: float | None,
        sent_per_s: float = 0.0,
    ) -> float:
        """Return what a way between two nodes takes through their broker; on one node nothing.

        With what is sent so often, bytes also wait for those before them.
        """
        if nodes[0] == nodes[1]:
            return 0.0
        speed = speed_mbit_per_s * 125.0 if speed_mbit_per_s else None
        fetch = self._fetches.get(nodes[1])
        if fetch is not None and (speed is None or fetch.value < speed):
            speed = fetch.value
        moving = sent_bytes / speed if speed else 0.0
        return sum(round_trips_ms) / 2 + moving + wait_ms(sent_per_s, moving, 1, LINK_VARIABILITY)

    def _add(
        self,
        means: dict[_Key, _Mean],
        key: _Key,
        value: float,
        runs: float,
        first: _Mean | None = None,
    ) -> _Mean:
        found = means.get(key)
        if found is None:
            if len(means) >= MAX_MEANS:
                del means[next(iter(means))]
            found = means[key] = first or _Mean()
        found.add(value, runs, self.now_ms)
        return found


def _pressure(cpu_percent: float) -> float:
    busy = min(BUSY_MAX, max(0.0, cpu_percent / 100))
    return busy * busy / (1.0 - busy)


def thread_factor(threads: int) -> float:
    """Return what a run with so many threads takes of one with a single one (Amdahl)."""
    return (1.0 - PARALLEL_SHARE) + PARALLEL_SHARE / max(1, threads)


def wait_ms(offered_per_s: float, run_ms: float, workers: int, variability: float = 1.0) -> float:
    """Return the mean wait before a run begins.

    `variability` is the mean of the squared coefficients of variation of arrivals and runs. Above
    saturation the wait grows by the utilisation alone: no queue is endless.
    """
    if offered_per_s <= 0 or run_ms <= 0:
        return 0.0
    use = offered_per_s * run_ms / 1000 / workers
    steady = min(use, SATURATED)
    power = (2.0 * (workers + 1)) ** 0.5 - 1.0
    wait = variability * run_ms / workers * float(steady**power) / (1.0 - steady)
    return wait + max(0.0, use - SATURATED) * OVERLOAD_MS
