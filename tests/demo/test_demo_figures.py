"""The arithmetic and the material of the demonstration."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.records import Placement, Rejection
from protocols.errors import EnvironmentFailure, UserError
from tona.demo import material
from tona.demo.story import why
from tona.demo.summary import Answer, Latency, first_answer_ms, latency, percentile


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_sample_that_enough_do_not_exceed(
    samples: list[float], percent: float
) -> None:
    found = percentile(samples, percent)
    assert found in samples
    assert sum(one <= found for one in samples) >= percent / 100 * len(samples) - 1e-6
    assert sum(one < found for one in samples) < percent / 100 * len(samples) + 1e-6


def test_latency_of_nothing_is_absent() -> None:
    assert latency([]) == Latency(0, None, None)
    assert latency([3.0, 1.0, 2.0]) == Latency(3, 2.0, 3.0)


def test_the_gap_ends_with_the_first_answer_without_the_dead_node() -> None:
    dead, other = frozenset({"n1"}), frozenset({"n2"})
    answers = [
        Answer(0.0, 1.0, dead),
        Answer(0.5, 2.1, dead),  # was on its way when the node died
        Answer(1.0, 3.0, error="lost"),
        Answer(1.0, 4.5, other),
        Answer(4.0, 5.0, other),
    ]
    assert first_answer_ms(answers, 2.0, "n1") == 2500.0
    assert first_answer_ms(answers[:3], 2.0, "n1") is None
    assert first_answer_ms([Answer(0.0, 1.0, other)], 2.0, "n1") is None


def test_words_count_by_whole_phrases_whatever_the_blanks() -> None:
    assert material.words_found(" ".join(material.PHRASES)) == material.WORDS_KNOWN
    assert material.words_found("REGION-BASED  segmen tation") == 2
    assert material.words_found("region segmentation") == 0


def test_a_placement_is_told_in_one_line() -> None:
    placement = Placement(
        1,
        ("n2",),
        {"n2": {"cpu": 3.2, "apart": 0.0}, "n1": {"cpu": 30.0, "apart": 30.0}},
        (Rejection("n3", "feasible", "is lost"), Rejection("n1", "rank", "scores higher")),
    )
    assert why(placement, "n2") == "score 3 (cpu 3); n1 60; n3: is lost"
    assert why(Placement(1, reason="no node fits"), "") == "no node fits"
    assert why(None, "n1") == "no decision is known"


def test_images_of_a_folder_come_by_name(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [one.name for one in material.images_in(tmp_path)] == ["a.png", "b.JPG"]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no image in it"):
        material.images_in(empty)


def test_an_image_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "IMAGE_MAX_BYTES", 4)
    (tmp_path / "a.png").write_bytes(b"12345")
    with pytest.raises(OSError, match="larger than"):
        material.read(tmp_path / "a.png")


def test_missing_packages_are_named_with_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(material.NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(EnvironmentFailure, match="needs no-such-package: run `make demo`"):
        material.pictures()


def test_an_installation_without_the_example_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(material, "__file__", str(tmp_path / "tona" / "demo" / "material.py"))
    with pytest.raises(EnvironmentFailure, match="clone the project and run `make demo`"):
        material.use_case()
