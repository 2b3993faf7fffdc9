"""Real child processes: started, announced, kept, given up, stopped."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from controller.broker import restarts
from controller.child import Child, environment
from protocols.errors import EnvironmentFailure
from tona.local.supervisor import Supervisor

WITHIN_S = 60
SLEEPS = "import signal, sys; print('here', flush=True); signal.pause()"


def python(program: str) -> Sequence[str]:
    return [sys.executable, "-c", program]


class Heard:
    """What a supervisor told, to be waited for."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def __call__(self, name: str, what: str) -> None:
        self.queue.put_nowait((name, what))

    async def next(self) -> tuple[str, str]:
        async with asyncio.timeout(WITHIN_S):
            return await self.queue.get()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
async def supervisor(tmp_path: Path, heard: Heard) -> AsyncIterator[Supervisor]:
    made = Supervisor(tmp_path / "logs", heard)
    yield made
    await made.stop("a", "b")


async def gone(pid: int) -> None:
    """Wait until a process, not of ours perhaps, has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(WITHIN_S):
            await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def test_what_dies_is_started_again_and_what_is_killed_stays_down(
    supervisor: Supervisor, heard: Heard
) -> None:
    assert await supervisor.start("a", lambda: python(SLEEPS), announces=True) == "here"
    first = supervisor.pid("a")
    os.kill(first, 9)
    assert await heard.next() == ("a", "was killed by signal 9: starting it again")
    _, again = await heard.next()
    second = supervisor.pid("a")
    assert (again, second != first) == (f"runs again as process {second}", True)
    supervisor.kill("a")
    await gone(second)
    assert heard.queue.empty()


async def test_a_start_that_fails_tells_the_last_words(supervisor: Supervisor) -> None:
    with pytest.raises(EnvironmentFailure, match="a did not start: it ended at once: no luck"):
        await supervisor.start(
            "a", lambda: python("import sys; sys.exit('no luck')"), announces=True
        )


async def test_what_dies_over_and_over_is_given_up(
    supervisor: Supervisor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FAILURES_MAX", 2)
    await supervisor.start("a", lambda: python("import sys; sys.exit('no luck')"))
    async with asyncio.timeout(WITHIN_S):
        failure = await supervisor.failed()
    assert "a ended with code 1 (no luck), 3 times in a row" in str(failure)
    assert await heard.next() == ("a", "ended with code 1 (no luck): starting it again")


async def test_what_was_asked_for_what_cannot_be_is_not_started_for_ever(
    supervisor: Supervisor, heard: Heard
) -> None:
    program = "import sys; print('no such option', file=sys.stderr); sys.exit(2)"
    await supervisor.start("a", lambda: python(program))
    async with asyncio.timeout(WITHIN_S):
        failure = await supervisor.failed()
    assert "a ended with code 2 (no such option), 3 times in a row" in str(failure)
    told = [heard.queue.get_nowait()[1] for _ in range(heard.queue.qsize())]
    assert sum(one.startswith("runs again") for one in told) == 2


async def test_stop_asks_first_and_kills_who_does_not_listen(
    tmp_path: Path,
) -> None:
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEPS}; signal.pause()"
    child = await Child.spawn(python(deaf), tmp_path / "deaf.log")
    await child.said()
    await child.stop(within_s=0.2)
    assert await child.wait() == -9


async def test_a_log_that_has_grown_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.child.LOG_MAX_BYTES", 3)
    log = tmp_path / "a.log"
    for word in ("one", "four", "six"):
        child = await Child.spawn(python(f"import sys; sys.exit('{word}')"), log)
        assert await child.wait() == 1
    assert (log.read_text(), log.with_suffix(".old.log").read_text()) == ("six\n", "four\n")


def test_a_child_hears_nothing_of_our_settings() -> None:
    ours = {"TONA_DATA": "/x", "NOTIFY_SOCKET": "/y", "WATCHDOG_USEC": "1", "PATH": "/bin"}
    assert environment(ours) == {"PATH": "/bin"}
