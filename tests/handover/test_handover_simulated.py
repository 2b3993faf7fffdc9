"""Handovers in the twin: the rules hold with faults at every step; each protection is needed."""

from collections.abc import Callable

import pytest

from controller.anchor.switching import Switching
from controller.scheduler.adoption import Adoption
from controller.twin.handovers import run
from controller.twin.pool import run_handovers
from controller.twin.rules import Rule

SEEDS = (1, 3)
Patch = Callable[[pytest.MonkeyPatch], None]


def without_letting_go(patch: pytest.MonkeyPatch) -> None:
    """An anchor grants a task elsewhere before its scheduler has let go of it."""
    begin = Switching._begin

    def hurried(self: Switching, task: object, node: str, to: str, cause: str) -> None:
        begin(self, task, node, to, cause)  # type: ignore[arg-type]
        held = self._book.tasks[task.spec.task]  # type: ignore[attr-defined]
        if held.heir:
            self._hand(held, cause, "at once")

    patch.setattr(Switching, "_begin", hurried)


def without_waiting(patch: pytest.MonkeyPatch) -> None:
    """A scheduler releases what a node brings along and nobody has granted yet."""
    patch.setattr(Adoption, "roaming", property(lambda _: False, lambda *_: None), raising=False)


@pytest.mark.parametrize(
    ("without", "rule"),
    [
        (without_letting_go, Rule.OWNER),
        (without_waiting, Rule.RESTART),
    ],
)
def test_each_protection_is_needed(
    without: Patch, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch)
    found = set()
    for seed in SEEDS:
        found.add(run(seed, 20).rule)
        if rule in found:
            return
    pytest.fail(f"no seed has broken {rule}, but {found}")


def test_the_rules_hold_with_faults_at_every_step() -> None:
    tally = run_handovers(2, 20, 1)
    assert (tally.rule, tally.text) == (None, "")
    assert tally.handovers >= 20
    assert tally.lost == tally.doubled == 0
    assert tally.ownerless_ms <= tally.bound_ms
    assert tally.struck
