"""Artifacts that nobody needs any more are collected; what can be gone back to never is."""

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from controller.api.bulk import Bulk, Collect
from controller.api.collecting import AFTER_S, UNUSED_S, Collector, alive, needed
from controller.decider import Record
from controller.records import ARTIFACT, USE_CASE, ArtifactRecord, UseCaseRecord, UseCaseState
from controller.registry import LiveRegistry, Registry

OLD, NEW, LOOSE = (hashlib.sha256(one).hexdigest() for one in (b"old", b"new", b"loose"))


def use_case(document: str, former: str, state: UseCaseState = UseCaseState.RUNNING) -> Record:
    record = UseCaseRecord("u", "default", 1, state, document, former=former)
    return Record(USE_CASE, "u", record, "c")


def naming(*digests: str) -> str:
    return msgspec.json.encode([{"artifact": f"sha256:{one}"} for one in digests]).decode()


async def test_the_old_version_goes_when_the_new_one_has_proved_itself(tmp_path: Path) -> None:
    registry = LiveRegistry(Registry("e"))
    now_s, ready = [time.time()], [True]
    records: list[Record] = []

    async def forget(digest: str, cause: str) -> None:
        records.append(Record(ARTIFACT, digest, None, cause))
        registry.apply(records[-1:])

    async def record(_record: ArtifactRecord, _tenant: str, _cause: str) -> None:
        raise AssertionError

    bulk = Bulk(tmp_path, registry, record, lambda: now_s[0], Collect(lambda: ready[0], forget))
    bulk.prepare()
    for name in (OLD, NEW):
        bulk.artifacts.path(name).write_bytes(b"x")
        registry.apply(
            [Record(ARTIFACT, f"sha256:{name}", ArtifactRecord(f"sha256:{name}", 1), "")]
        )

    async def later(seconds: float) -> set[str]:
        now_s[0] += seconds
        await bulk.sweep()
        return {one for one in (OLD, NEW) if bulk.artifacts.path(one).exists()}

    registry.apply([use_case(naming(NEW), naming(OLD))])
    assert await later(0) == {OLD, NEW}
    assert await later(100 * AFTER_S) == {OLD, NEW}
    registry.apply([use_case(naming(NEW), "")])
    assert await later(AFTER_S - 1) == {OLD, NEW}
    ready[0] = False
    assert await later(2) == {OLD, NEW}
    ready[0] = True
    assert await later(0) == {NEW}
    assert [one.key for one in records] == [f"sha256:{OLD}"]
    registry.apply([use_case(naming(NEW), "", UseCaseState.DELETED)])
    await later(1)
    assert await later(AFTER_S) == set()


def test_what_was_put_by_hand_stays_for_long() -> None:
    collector = Collector()
    assert collector.look([(LOOSE, 1, 0.0)], set(), UNUSED_S) == []
    assert collector.look([(LOOSE, 1, 0.0)], set(), UNUSED_S + 1) == [LOOSE]


def test_what_is_put_again_is_young_again() -> None:
    collector = Collector()
    collector.look([], {OLD}, 0.0)
    assert collector.look([(OLD, 1, AFTER_S)], set(), AFTER_S + 1) == []
    assert collector.look([(OLD, 1, AFTER_S)], set(), 2 * AFTER_S + 1) == [OLD]


@given(
    st.lists(
        st.tuples(
            st.floats(0, UNUSED_S * 2),
            st.sets(st.sampled_from([OLD, NEW, LOOSE])),
        ),
        max_size=20,
    )
)
def test_what_is_needed_is_never_collected(steps: list[tuple[float, set[str]]]) -> None:
    collector, now_s = Collector(), 0.0
    held: dict[str, tuple[str, int, float]] = {one: (one, 1, 0.0) for one in (OLD, NEW, LOOSE)}
    for span_s, used in steps:
        now_s += span_s
        for gone in collector.look(list(held.values()), used, now_s):
            assert gone not in used
            del held[gone]


def test_every_place_that_names_an_artifact_counts() -> None:
    registry = Registry("e")
    registry.apply([use_case(naming(NEW), naming(OLD))])
    assert needed(alive(registry)) == {OLD, NEW}
    registry.apply([use_case(naming(NEW), naming(OLD), UseCaseState.DELETED)])
    found: Any = needed(alive(registry))
    assert found == set()
