import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from controller.decider import Record, View
from controller.records import CHECKPOINT
from controller.registry import Change, Expired, Registry
from protocols.errors import UserError


class Thing(Struct, frozen=True):
    number: int


KINDS = ("fleet", "task")


@st.composite
def changes(draw: st.DrawFn) -> list[Record | View]:
    def one() -> st.SearchStrategy[Record | View]:
        value = st.none() | st.builds(Thing, st.integers(0, 9))
        key = st.sampled_from("abc")
        return st.one_of(
            st.builds(View, st.sampled_from(KINDS), key, value),
            st.builds(Record, st.sampled_from(KINDS), key, value, st.just("cause")),
        )

    return draw(st.lists(one(), max_size=60))


@given(changes(), st.integers(1, 20), st.sets(st.integers(0, 60)))
def test_a_list_with_every_watched_change_is_the_next_list(
    script: list[Record | View], log_length: int, pauses: set[int]
) -> None:
    registry = Registry("e", log_length)
    mirror: dict[str, dict[str, Thing]] = {kind: {} for kind in KINDS}
    tokens = dict.fromkeys(KINDS, registry.token)
    for number, change in enumerate([*script, None]):
        if change is not None:
            registry.apply([change])
        if number not in pauses and change is not None:
            continue
        for kind in KINDS:
            newer = registry.watch(kind, tokens[kind])
            if isinstance(newer, Expired):
                mirror[kind] = {key: registry.get(kind, key) for key in registry.keys(kind)}
                tokens[kind] = newer.token
                continue
            assert [one.revision for one in newer] == sorted({one.revision for one in newer})
            for one in newer:
                if one.value is None:
                    mirror[kind].pop(one.key, None)
                else:
                    mirror[kind][one.key] = one.value
                tokens[kind] = registry.token_at(one.revision)
            assert registry.list(kind) == [mirror[kind][key] for key in sorted(mirror[kind])]


@given(changes(), st.integers(1, 20), st.integers(0, 60))
def test_a_watch_gives_every_change_after_its_token_or_says_expired(
    script: list[Record | View], log_length: int, start: int
) -> None:
    registry = Registry("e", log_length)
    registry.apply(script)
    start = min(start, registry.revision)
    for kind in KINDS:
        wanted = [
            Change(revision, kind, one.key, one.value)
            for revision, one in enumerate(script, 1)
            if one.kind == kind and revision > start
        ]
        got = registry.watch(kind, registry.token_at(start))
        if len(wanted) <= log_length:
            assert got == wanted
        else:
            assert isinstance(got, Expired)
            assert got.token == registry.token


def test_one_kind_does_not_push_another_out() -> None:
    registry = Registry("e", 4)
    registry.apply([View("task", "a", Thing(1))])
    registry.apply([View("fleet", "n", Thing(n)) for n in range(100)])
    assert registry.watch("task", "e.0") == [Change(1, "task", "a", Thing(1))]
    assert isinstance(registry.watch("fleet", "e.50"), Expired)


def test_a_restart_is_told_from_a_continuation() -> None:
    before, after = Registry("first"), Registry("second")
    before.apply([View("task", "a", Thing(1))])
    after.apply([View("task", "a", Thing(1)), View("task", "b", Thing(2))])
    assert before.watch("task", before.token) == []
    assert after.watch("task", before.token) == Expired(
        "second.2", "the controller has restarted since"
    )


@pytest.mark.parametrize("token", ["", "e", ".", "e.", ".3", "e.x", "e.-1", "e.²", "e.1 "])
def test_what_is_no_token_is_one_sentence(token: str) -> None:
    with pytest.raises(UserError, match="is no revision token: take one from a listing"):
        Registry("e").watch("task", token)


def test_a_revision_that_never_was_is_refused() -> None:
    with pytest.raises(UserError, match="revision 3 lies ahead of the newest, 0"):
        Registry("e").watch("task", "e.3")


def test_listing_by_prefix_and_filter() -> None:
    registry = Registry("e")
    registry.apply([View("task", key, Thing(n)) for n, key in enumerate(("b/1", "a/2", "a/1"))])
    assert registry.list("task") == [Thing(2), Thing(1), Thing(0)]
    assert registry.list("task", prefix="a/") == [Thing(2), Thing(1)]
    assert registry.list("task", where=lambda thing: thing.number < 2) == [Thing(1), Thing(0)]
    assert registry.list("comet") == []
    assert registry.get("comet", "a") is registry.get("task", "a") is None


def test_bulk_that_nobody_watches_is_not_held() -> None:
    registry = Registry("e")
    registry.apply([Record(CHECKPOINT, "t", Thing(1), "cause")])
    assert (registry.list(CHECKPOINT), registry.revision) == ([], 0)
