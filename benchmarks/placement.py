"""How fast services are placed on a large fleet, and how near to the optimum on small ones."""

import random
import sys
import time
from collections.abc import Callable
from statistics import mean
from typing import Final, NamedTuple

from msgspec import structs

from benchmarks.harness import greedy
from benchmarks.harness.exact import optimum
from benchmarks.harness.instances import instance
from benchmarks.harness.report import Report, options, percentile, progress
from controller.anchor.placement import Request, Snapshot, place
from controller.anchor.placement.columns import Columns
from controller.anchor.placement.model import Model
from controller.anchor.placement.planner import choose

NODES: Final = 5000
TASKS: Final = 20
CELLS: Final = (1, 50)
"""One of all nodes, and so many that a hundred nodes share one."""
ROUNDS: Final = 200
QUICK_ROUNDS: Final = 20
FLEETS: Final = 4
"""Different fleets and services that take turns."""
INSTANCES: Final = 1000
QUICK_INSTANCES: Final = 100
FORMS: Final = 0.5
"""Share of the tasks that have another form in some of the small instances..."""
FORMS_PART: Final = 4
"""... one of so many."""
GAP_BOUND_PERCENT: Final = 5.0
MOST_TASKS: Final = 12
MOST_NODES: Final = 12
_MS: Final = 1e-6
"""Milliseconds in a nanosecond."""

Posed = tuple[list[Request], Snapshot]


class Compared(NamedTuple):
    """One small instance, solved by all."""

    best: float | None
    """The optimum; None when no plan exists."""
    ours: float | None
    greedy: float | None
    exact_ms: float
    ours_ms: float


def main() -> None:
    """Run the benchmark."""
    asked = options("placement", __doc__ or "").parse_args()
    report = Report("placement")
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    _speed(report, rounds)
    _gaps(report, QUICK_INSTANCES if asked.quick else INSTANCES)
    report.note(
        f"place: {TASKS} tasks of one service on {NODES} nodes of one cell, whole answers with "
        f"spares, scores and reasons, on a snapshot that is new each time; {rounds} rounds over "
        f"{FLEETS} fleets, one process. cells: the same nodes in {CELLS[1]} cells. again: the next "
        "service on the same nodes, whose arrays are made already."
    )
    report.note(
        "gap: over the optimum of HiGHS for the same objective, where a plan exists; 4 to "
        f"{MOST_TASKS} tasks, 4 to {MOST_NODES} nodes, groups, edges, capacities that conflict. "
        "greedy: task after task on the node with the lowest score, as placement did before; what "
        "it finds is held to the same objective."
    )
    report.note(
        "forms: half of the tasks have a second form, on one provider or two, measured on some of "
        "the nodes; some are deviceless or have a latency to keep."
    )
    report.close()


def _speed(report: Report, rounds: int) -> None:
    for cells in CELLS:
        progress(f"{NODES} nodes in {cells} cell{'s' if cells > 1 else ''}, {TASKS} tasks")
        posed = [instance(seed, TASKS, NODES, cells=cells, tight=0.5) for seed in range(FLEETS)]
        fresh, cpu, again, peer = [], [], [], []
        for turn in range(rounds):
            requests, snapshot = posed[turn % FLEETS]
            # Another tuple of the same nodes, as after a report: nothing that was kept fits it.
            renewed = Snapshot(
                turn,
                (*snapshot.nodes,),
                snapshot.reserved_bytes,
                snapshot.reserved_cpu_percent,
                snapshot.instances,
            )
            before = time.process_time_ns()
            fresh.append(_timed(lambda: place(requests, renewed)))  # noqa: B023 - called at once
            cpu.append((time.process_time_ns() - before) * _MS)
            again.append(_timed(lambda: place(requests, renewed)))  # noqa: B023 - called at once
            if cells == 1 and turn < QUICK_ROUNDS:
                one, free = greedy.Greedy(snapshot), _without_groups(requests)
                peer.append(_timed(lambda: one.place(free)))  # noqa: B023 - called at once
        if cells == 1:
            report.figure("placements_per_s", TASKS * 1000 / mean(fresh))
            report.figure("place_p50_ms", percentile(fresh, 50))
            report.figure("place_p99_ms", percentile(fresh, 99))
            report.figure("place_cpu_p50_ms", percentile(cpu, 50))
            report.figure("again_p50_ms", percentile(again, 50))
            report.figure("greedy_p50_ms", percentile(peer, 50))
            report.figure("greedy_per_s", TASKS * 1000 / mean(peer))
        else:
            report.figure("cells_p50_ms", percentile(fresh, 50))
            report.figure("cells_p99_ms", percentile(fresh, 99))


def _gaps(report: Report, count: int) -> None:
    progress(f"{count} small instances beside HiGHS")
    compared = [_compared(seed) for seed in range(count)]
    formed = [_compared(seed, forms=FORMS) for seed in range(count // FORMS_PART)]
    chosen = [_gap(one.ours, one.best) for one in formed if one.best and one.ours is not None]
    report.figure("forms_gap_percent", mean(chosen), GAP_BOUND_PERCENT)
    report.figure("forms_gap_p95_percent", percentile(chosen, 95))
    report.figure("forms_missed_count", sum(one.best is not None for one in formed) - len(chosen))
    solved = [one for one in compared if one.best is not None]
    ours = [_gap(one.ours, one.best) for one in solved if one.ours is not None]
    peer = [_gap(one.greedy, one.best) for one in solved if one.greedy is not None]
    report.figure("optimum_gap_percent", mean(ours), GAP_BOUND_PERCENT)
    report.figure("optimum_gap_p95_percent", percentile(ours, 95))
    report.figure("optimum_gap_max_percent", max(ours))
    report.figure("instances_count", len(compared))
    report.figure("feasible_count", len(solved))
    report.figure("missed_count", len(solved) - len(ours))
    report.figure("greedy_gap_percent", mean(peer))
    report.figure("greedy_gap_p95_percent", percentile(peer, 95))
    report.figure("greedy_missed_count", len(solved) - len(peer))
    report.figure("small_p50_ms", percentile([one.ours_ms for one in compared], 50))
    report.figure("small_p99_ms", percentile([one.ours_ms for one in compared], 99))
    report.figure("exact_p50_ms", percentile([one.exact_ms for one in compared], 50))
    report.figure("exact_p99_ms", percentile([one.exact_ms for one in compared], 99))


def _compared(seed: int, forms: float = 0.0) -> Compared:
    chance = random.Random(seed)  # noqa: S311 - nothing is kept secret with it
    requests, snapshot = instance(
        seed,
        chance.randint(4, MOST_TASKS),
        chance.randint(4, MOST_NODES),
        cells=chance.choice((1, 1, 2)),
        tight=chance.choice((0.5, 1.0, 1.5)),
        forms=forms,
    )
    model = Model(requests, Columns(snapshot))
    began = time.perf_counter_ns()
    best = optimum(model)
    solved = time.perf_counter_ns()
    place(requests, snapshot)
    ended = time.perf_counter_ns()
    plan, _ = choose(model)
    placed = greedy.Greedy(snapshot).place(requests)
    return Compared(
        None if best is None else best.cost,
        None if plan is None else plan.cost,
        None if placed is None else greedy.cost(model, placed),
        (solved - began) * _MS,
        (ended - solved) * _MS,
    )


def _gap(cost: float | None, best: float | None) -> float:
    assert cost is not None
    assert best
    gap = 100 * (cost / best - 1)
    assert gap > -0.01, "nothing is better than the optimum"
    return max(0.0, gap)


def _without_groups(requests: list[Request]) -> list[Request]:
    """Return the tasks so that a greedy search, which looks not ahead, finds a node for each."""
    return [structs.replace(one, spec=structs.replace(one.spec, group="")) for one in requests]


def _timed(work: Callable[[], object]) -> float:
    """Return how long it takes, in ms."""
    began = time.perf_counter_ns()
    found = work()
    took = time.perf_counter_ns() - began
    assert found
    return took * _MS


if __name__ == "__main__":
    sys.exit(main())
