"""Operations that were asked for are kept, in a bounded chain that shows a change."""

import pytest
from msgspec.structs import replace

from controller.accounts import OperationRecord, QuarantineTask
from controller.api.noting import KEPT, Noting, broken
from controller.api.operations import BY_NAME, SubmitUseCase
from tona.cli import accounts


class Kept:
    """What a store would have."""

    def __init__(self) -> None:
        self.rows: dict[str, OperationRecord] = {}

    async def keep(self, key: str, record: OperationRecord) -> None:
        self.rows[key] = record

    def all(self) -> list[OperationRecord]:
        return sorted(self.rows.values(), key=lambda one: one.number)


async def ask(noting: Noting, name: str = "task.quarantine", verdict: str = "ok") -> None:
    arguments = QuarantineTask("ocr.read")
    await noting.note(BY_NAME[name], ("ana", "default"), arguments, "c1", verdict, "")


async def test_who_asked_for_what_is_kept_and_reading_leaves_nothing() -> None:
    kept = Kept()
    noting = Noting(kept.keep)
    await ask(noting)
    await ask(noting, "task.list")
    await ask(noting, "blob.put")
    document = SubmitUseCase("name = 'x'")
    await noting.note(BY_NAME["usecase.submit"], ("", ""), document, "c2", "user", "no such node")
    first, second = kept.all()
    assert (first.who, first.plane, first.operation) == ("ana", "control", "task.quarantine")
    assert (first.target, first.verdict) == ("ocr.read", "ok")
    assert (second.verdict, second.reason) == ("user", "no such node")
    assert second.digest.startswith("sha256:")
    assert "name" not in second.target


async def test_the_chain_goes_on_after_a_restart_is_bounded_and_shows_a_change() -> None:
    kept = Kept()
    noting = Noting(kept.keep)
    for _ in range(5):
        await ask(noting)
    again = Noting(kept.keep)
    again.restore(kept.all())
    for _ in range(KEPT):
        await ask(again)
    records = kept.all()
    assert len(records) == KEPT
    assert (records[-1].number, broken(records)) == (KEPT + 4, "")
    records[7] = replace(records[7], who="somebody")
    assert broken(records) == f"operation {records[7].number} does not follow on the one before"
    del records[7]
    assert broken(records)


async def test_the_listing_says_whether_the_chain_holds(capsys: pytest.CaptureFixture[str]) -> None:
    kept = Kept()
    noting = Noting(kept.keep)
    for _ in range(3):
        await ask(noting)
    newest_first = kept.all()[::-1]
    accounts._draw_chain(newest_first)
    assert "checked: the chain holds" in capsys.readouterr().out
    newest_first[1] = replace(newest_first[1], verdict="user")
    accounts._draw_chain(newest_first)
    said = capsys.readouterr().out
    assert "the log of operations was changed: operation 1 does not follow" in said
