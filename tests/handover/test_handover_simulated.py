"""Handovers in the twin: the rules hold with faults at every step; each protection is needed."""

from collections.abc import Callable
from random import Random

import pytest
from thorough import TIMES

from controller.anchor.switching import Switching
from controller.scheduler.adoption import Adoption
from controller.twin.handover_faults import STEPS, VICTIMS, Armed, Deck
from controller.twin.handover_tally import Tally
from controller.twin.handovers import run
from controller.twin.pool import workers
from controller.twin.roamer import Roamer
from controller.twin.rules import Rule

SEEDS = (2, 4, 6)
KEPT = range(1, 1 + 6 * TIMES)
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


def without_another_try(patch: pytest.MonkeyPatch) -> None:
    """A node whose link was lost connects to that cell no more, nor to another one."""
    patch.setattr(Roamer, "_lose", lambda self, _, will_ms: self._hang_up(will_ms))


@pytest.mark.parametrize(
    ("without", "rule"),
    [
        (without_another_try, Rule.UNDUE),
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


@pytest.mark.timeout(120 * TIMES)
def test_the_rules_hold_with_faults_at_every_step() -> None:
    total = Tally(KEPT[0])
    for seed in KEPT:
        total.add(run(seed, 9))
    assert (total.rule, total.text) == (None, "")
    assert total.handovers >= 9 * len(KEPT)
    assert total.lost == total.doubled == 0
    assert total.ownerless_ms <= total.ownerless_bound_ms
    assert total.anchorless_ms <= total.anchorless_bound_ms
    assert 0 < total.unserved_ms <= total.unserved_bound_ms
    assert total.undue == 0
    assert total.anchors_moved
    assert total.changed
    assert 0 < total.ordered_elsewhere <= total.endangered
    assert sum(sum(row.values()) for row in total.crashes.values())
    assert total.forged
    assert total.replayed


def test_a_seed_means_the_same_after_another_one_and_alone() -> None:
    found = []
    for seeds in ((1, 2), (2,)):
        with workers(1) as worker:
            found.append([worker.submit(run, seed, 1) for seed in seeds][-1].result())
    after, alone = found
    assert after == alone
    assert alone.fingerprint


def test_every_broken_seed_is_told_and_the_others_count() -> None:
    total = Tally(1)
    for seed in (3, 1, 2):
        broken = None if seed == 2 else Rule.LOST
        total.add(Tally(seed, handovers=seed, rule=broken, text=f"seed {seed}"), 50)
    assert total.handovers == 1 + 2 + 3
    assert total.broken == len(total.failures)
    assert [(one.seed, one.handovers, one.text) for one in total.failures] == [
        (1, 50, "seed 1"),
        (3, 50, "seed 3"),
    ]
    assert (total.seed, total.text) == (1, "seed 1")


def test_every_step_is_struck_by_everybody_before_any_is_twice() -> None:
    deck = Deck(Random(1), STEPS)
    pairs = []
    for _ in range(len(STEPS) * len(VICTIMS)):
        pairs.append(deck.deal(lambda _: True))
        step, victim = pairs[-1]
        deck.struck(Armed(step, victim, "n", "a", "b", cut=False, for_ms=1))
    assert len(set(pairs)) == len(pairs)
    assert not Tally(1, crashes=deck.crashes).empty
