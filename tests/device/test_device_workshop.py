"""The hands when the disk under them fails: one call or nothing is lost, never the daemon."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.core import commands, events
from device_agent.executors.door import Bytes, Done
from device_agent.workshop import Makers, Workshop
from protocols.errors import Blame, EnvironmentFailure
from protocols.folder import DataFolder
from protocols.manifest import Dtype
from protocols.messages.invocation import Blob

LARGE = {f"y{at}": Bytes(Dtype.UINT8, (60_000,), bytes(60_000)) for at in range(4)}


class Hands:
    """A workshop and what it tells."""

    def __init__(self, folder: Path) -> None:
        self.told: list[Any] = []
        self.crashes: list[BaseException] = []
        self.blobs = BlobFolder(folder / "blobs", 1 << 20, 60.0)
        cache = ArtifactCache(folder / "artifacts", 1 << 20, 0.0)
        makers = Makers(
            {},
            lambda: pytest.fail("nothing is transferred"),
            lambda: pytest.fail("nothing is read"),
            lambda: pytest.fail("nothing is logged"),
        )
        self.workshop = Workshop(makers, cache, self.blobs, self.told.append, self.crashes.append)

    def answered(self) -> Any:
        self.workshop._answered("1", Done(LARGE, 7))
        return self.told.pop()


@pytest.fixture
def hands(tmp_path: Path) -> Hands:
    return Hands(tmp_path)


def test_outputs_without_room_fail_their_call_alone(hands: Hands) -> None:
    shutil.rmtree(hands.blobs.folder)
    failed = hands.answered()
    assert isinstance(failed, events.ExecutorFailed)
    assert (failed.blame, failed.retryable) == (Blame.ENVIRONMENT, True)
    assert "do not fit into" in failed.text
    # The folder is back by now, and the next call has its room.
    assert isinstance(hands.answered(), events.ExecutorDone)
    assert not hands.crashes


def test_outputs_too_much_together_are_made_files_until_they_are_dropped(hands: Hands) -> None:
    done = hands.answered()
    assert isinstance(done, events.ExecutorDone)
    names = tuple(one.digest for one in done.outputs.values() if isinstance(one, Blob))
    assert len(names) == 2
    assert hands.blobs.used_bytes() == 120_000
    hands.workshop.doors[commands.DropValues](commands.DropValues((*names, f"made:{'0' * 64}")))
    assert hands.blobs.used_bytes() == 0


@pytest.mark.parametrize("pushing", [False, True])
async def test_one_who_asked_for_a_value_leaves_and_the_other_one_has_it(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, *, pushing: bool
) -> None:
    ends = asyncio.Event()
    told = []

    class Fetching:
        async def fetch_blob(self, *_: object) -> None:
            told.append("asked")
            try:
                await ends.wait()
            except asyncio.CancelledError:
                told.append("left")
                raise

        async def push_blob(self, *_: object) -> str:
            await self.fetch_blob()
            return ""

    fetching = Fetching()
    monkeypatch.setattr(hands.workshop._transfers, "_make_fetcher", lambda: fetching)
    doors, named = hands.workshop.doors, f"sha256:{'0' * 64}"
    kind = commands.PushBlob if pushing else commands.FetchBlob
    for _ in range(2):
        doors[kind](kind(named, 5, (), ""))
    await asyncio.sleep(0)
    doors[commands.LeaveBlob](commands.LeaveBlob(named, not pushing))
    doors[commands.LeaveBlob](commands.LeaveBlob(named, pushing))
    ends.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*hands.workshop._tasks, return_exceptions=True)
    assert told == ["asked", "asked", "left"]
    assert len(hands.told) == 1
    doors[commands.LeaveBlob](commands.LeaveBlob(named, pushing))
    assert not hands.crashes


@pytest.mark.parametrize("pushing", [False, True])
async def test_a_value_is_hurried_that_was_asked_for_just_before(
    hands: Hands, monkeypatch: pytest.MonkeyPatch, *, pushing: bool
) -> None:
    told: list[object] = []

    class Fetching:
        async def fetch_blob(self, digest: str, *_: object) -> None:
            told.append(digest)

        async def push_blob(self, digest: str, *_: object) -> str:
            told.append(digest)
            return ""

        def hurry_blob(self, *asked: object, pushing: bool) -> None:
            told.append((*asked, pushing))

    fetching = Fetching()
    monkeypatch.setattr(hands.workshop._transfers, "_make_fetcher", lambda: fetching)
    doors, named = hands.workshop.doors, f"sha256:{'0' * 64}"
    kind = commands.PushBlob if pushing else commands.FetchBlob
    hurry = commands.HurryBlob(named, (-7, 1000.0), pushing)
    doors[commands.HurryBlob](hurry)
    await asyncio.sleep(0)
    doors[kind](kind(named, 5, (), ""))
    doors[commands.HurryBlob](hurry)
    await asyncio.sleep(0)
    assert told == [named, (named, (-7, 1000.0), pushing)]
    assert not hands.crashes


async def test_a_folder_that_cannot_be_looked_after_ends_nothing(hands: Hands) -> None:
    shutil.rmtree(hands.blobs.folder)
    hands.blobs.folder.write_text("a file")
    await hands.workshop.look_after()
    assert not hands.crashes


def test_a_full_disk_at_the_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("protocols.folder.os.pwrite", full)
    with pytest.raises(EnvironmentFailure, match="cannot be written: No space left on device"):
        DataFolder(tmp_path / "data", "device agent")
    monkeypatch.undo()
    DataFolder(tmp_path / "data", "device agent").close()
