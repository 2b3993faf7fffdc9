"""Schedules on all cores: worker processes that all hash alike, so that a seed replays anywhere."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context
from typing import Final

from controller.broker.tether import die_with_parent
from controller.twin import handover_tally, handovers, schedule
from controller.twin.schedule import Tally, Verdict

COLLECT_EVERY: Final = 4
"""Schedules between two collections of garbage: each leaves one large heap, all at once."""
HASH_SEED: Final = "PYTHONHASHSEED"


def cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0))


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    """Run worker processes in which sets of texts are ordered alike, every time.

    Deciders iterate over sets here and there; the order is the interpreter's, by a random hash.
    What is raised inside, an interrupt too, ends them in the middle of what they run.
    """
    before = os.environ.get(HASH_SEED)
    os.environ[HASH_SEED] = "0"
    others = set(active_children())
    pool = ProcessPoolExecutor(
        count, get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        _start(pool)
        yield pool
    except BaseException:
        for one in set(active_children()) - others:
            one.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ[HASH_SEED]
        else:
            os.environ[HASH_SEED] = before


def _start(pool: ProcessPoolExecutor) -> None:
    """Start all workers, deaf to the terminal's interrupts from their first instruction."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool.submit(os.getpid)
    finally:
        # One that came meanwhile is ours, and comes here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def run_many(
    first: int, schedules: int, count: int, progress: Callable[[Tally], None] | None = None
) -> Tally:
    """Run the schedules of consecutive seeds; the sum does not depend on the number of workers.

    An interrupt ends it with what was run until then.
    """
    total = Tally()
    seeds = range(first, first + schedules)
    with suppress(KeyboardInterrupt), workers(min(count, schedules)) as pool:
        running: list[Future[Verdict]] = [pool.submit(_run, seed) for seed in seeds]
        for done in as_completed(running):
            total.add(done.result())
            if progress is not None:
                progress(total)
    return total


def run_handovers(
    first: int,
    wanted: int,
    count: int,
    progress: Callable[[handover_tally.Tally], None] | None = None,
) -> handover_tally.Tally:
    """Run so many handovers in parts, each from a seed of its own; added up, the first one first.

    An interrupt ends it with what was run until then.
    """
    total = handover_tally.Tally(first)
    sizes = [handovers.PART] * (wanted // handovers.PART)
    sizes += [wanted % handovers.PART] if wanted % handovers.PART else []
    with suppress(KeyboardInterrupt), workers(min(count, len(sizes))) as pool:
        running = {pool.submit(_hand_over, first + at, size): size for at, size in enumerate(sizes)}
        for done in as_completed(running):
            total.add(done.result(), running[done])
            if progress is not None:
                progress(total)
    return total


def trace_handovers(seed: int, wanted: int) -> tuple[handover_tally.Tally, list[str]]:
    """Run one part as the workers do; return what came of it, and all that has happened."""
    total = handover_tally.Tally(seed)
    with workers(1) as pool:
        tally, lines = pool.submit(_trace, seed, wanted).result()
    total.add(tally, wanted)
    return total, lines


def _hand_over(seed: int, wanted: int) -> handover_tally.Tally:
    tally = handovers.run(seed, wanted)
    gc.collect()
    return tally


def _trace(seed: int, wanted: int) -> tuple[handover_tally.Tally, list[str]]:
    lines: list[str] = []
    return handovers.run(seed, wanted, lines.append), lines


def _begin(parent: int) -> None:
    """End with the parent, leave interrupts to it, which gets them too, and collect no garbage."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.disable()


def _run(seed: int) -> Verdict:
    verdict = schedule.run(seed)
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return verdict


def _replay(seed: int, traced: bool) -> tuple[Verdict, str, list[str]]:
    lines: list[str] = []
    verdict = schedule.run(seed, lines.append if traced else None)
    return verdict, verdict.fingerprint, lines


def replay(seed: int, traced: bool = False) -> tuple[Verdict, str, list[str]]:
    """Run one schedule as the workers do; return what came of it, its hash and its trace."""
    with workers(1) as pool:
        return pool.submit(_replay, seed, traced).result()
