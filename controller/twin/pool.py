"""Schedules on all cores: worker processes that all hash alike, so that a seed replays anywhere."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Final

from controller.twin import schedule
from controller.twin.schedule import Tally, Verdict

CHUNK: Final = 20
"""Schedules that a worker runs before it reports."""
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
    """
    before = os.environ.get(HASH_SEED)
    os.environ[HASH_SEED] = "0"
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_ignore_interrupts)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            del os.environ[HASH_SEED]
        else:
            os.environ[HASH_SEED] = before


def run_many(
    first: int, schedules: int, count: int, progress: Callable[[Tally], None] | None = None
) -> Tally:
    """Run the schedules of consecutive seeds; the sum does not depend on the number of workers.

    An interrupt ends it with what was run until then.
    """
    total = Tally()
    seeds = range(first, first + schedules)
    chunks = [seeds[at : at + CHUNK] for at in range(0, schedules, CHUNK)]
    with workers(min(count, max(1, len(chunks)))) as pool:
        running: list[Future[Tally]] = [pool.submit(_run_all, list(one)) for one in chunks]
        with suppress(KeyboardInterrupt):
            for done in as_completed(running):
                total.merge(done.result())
                if progress is not None:
                    progress(total)
    return total


def _ignore_interrupts() -> None:
    """Leave it to the parent, which gets them too, to end a run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_all(seeds: list[int]) -> Tally:
    tally = Tally()
    gc.disable()
    for number, seed in enumerate(seeds, 1):
        tally.add(schedule.run(seed))
        if number % COLLECT_EVERY == 0:
            gc.collect()
    return tally


def _replay(seed: int, traced: bool) -> tuple[Verdict, str, list[str]]:
    lines: list[str] = []
    verdict = schedule.run(seed, lines.append if traced else None)
    return verdict, verdict.fingerprint, lines


def replay(seed: int, traced: bool = False) -> tuple[Verdict, str, list[str]]:
    """Run one schedule as the workers do; return what came of it, its hash and its trace."""
    with workers(1) as pool:
        return pool.submit(_replay, seed, traced).result()
