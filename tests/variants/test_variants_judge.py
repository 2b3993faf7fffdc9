"""When two answers of a model say the same, and how samples are divided; without any model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import UserError
from tona.variants import judge, samples
from tona.variants.samples import Sample


def steps(*classes: int, count: int = 20) -> dict[str, Any]:
    """Return the output of a reader: one row, a step for each class."""
    return {"y": np.eye(count, dtype=np.float32)[list(classes)][None]}


def test_a_text_is_the_best_path_without_repeats_and_blanks() -> None:
    metric = judge.metric_of("auto", steps(0))
    assert metric.name == "sequence"
    assert metric.read is not None
    assert metric.read(steps(0, 3, 3, 0, 3, 5)) == "3 3 5"
    assert metric.same(steps(3, 3, 0, 5), steps(0, 3, 5, 5))
    assert not metric.same(steps(3, 0, 3), steps(3, 3))


def test_a_class_is_the_highest_value() -> None:
    first = {"y": np.array([[0.1, 0.7, 0.2]], np.float32)}
    metric = judge.metric_of("auto", first)
    assert metric.name == "top1"
    assert metric.read is not None
    assert metric.read(first) == "1"


def test_boxes_are_close_or_not() -> None:
    boxes = {"y": np.linspace(0, 100, 60, dtype=np.float32).reshape(1, 5, 12)}
    metric = judge.metric_of("auto", boxes)
    assert metric.name == "close"
    assert metric.same({"y": boxes["y"] + 0.9}, boxes)
    assert not metric.same({"y": boxes["y"] + 1.1}, boxes)
    assert not metric.same({"y": boxes["y"][:, :4]}, boxes)


def test_deviation_is_over_all_values() -> None:
    one = {"a": np.zeros(3, np.float32), "b": np.zeros(1, np.float32)}
    other = {"a": np.array([0, 1, 0], np.float32), "b": np.array([3], np.float32)}
    assert judge.deviation(other, one) == (1.0, 3.0)


@pytest.mark.parametrize(("name", "told"), [("best", "auto, top1"), ("exact", "--script")])
def test_a_wrong_metric_is_told(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        judge.metric_of(name, steps(0))


@settings(deadline=None)
@given(values=st.lists(st.integers(0, 9), min_size=2, max_size=40), most=st.integers(1, 10))
def test_what_variants_are_made_with_judges_none(values: list[int], most: int) -> None:
    every = [
        Sample(str(at), {"x": np.array([one], np.float32)}, None) for at, one in enumerate(values)
    ]
    try:
        made_with, judged_by = samples.divide(every, most)
    except UserError:
        assert len(set(values)) <= most
        return
    assert sorted(one.name for one in made_with + judged_by) == sorted(one.name for one in every)
    seen = {float(one.inputs["x"][0]) for one in made_with}
    assert len(seen) <= most <= len(made_with)
    assert not seen & {float(one.inputs["x"][0]) for one in judged_by}
    again = samples.divide(list(reversed(every)), most)[0]
    assert {float(one.inputs["x"][0]) for one in again} == seen, "the order changes nothing"


def test_samples_come_from_one_file_with_labels(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(6).reshape(3, 2), labels=np.array(["a", "b", "c"]))
    found = samples.read_samples(path, None, None)
    assert [one.label for one in found] == ["a", "b", "c"]
    assert found[1].inputs["x"].tolist() == [[2, 3]]


def test_samples_come_from_files_that_a_script_reads(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy\n"
        "def prepare(path):\n"
        "    return None if path.suffix == '.md' else {'x': numpy.zeros(int(path.stem))}\n"
    )
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("2.txt", "1.txt", "notes.md", ".hidden"):
        (folder / name).touch()
    labels = tmp_path / "labels.tsv"
    labels.write_text("1.txt\tone\n2\ttwo\n")
    found = samples.read_samples(folder, samples.read_script(script), labels)
    assert [(one.name, one.label) for one in found] == [("1.txt", "one"), ("2.txt", "two")]


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "no such Python file"), ("x = 1", "no function prepare"), ("def (", "invalid syntax")],
)
def test_a_script_that_cannot_be_used_is_told(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "script.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=told):
        samples.read_script(path)


def test_data_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.npz"
    text.write_text("no arrays")
    uneven = tmp_path / "uneven.npz"
    np.savez(uneven, x=np.zeros(3), y=np.zeros(2))
    labels = tmp_path / "labels.tsv"
    labels.write_text("no tab here\n")
    for path, told in (
        (tmp_path / "absent", "no such file"),
        (empty, "holds no sample"),
        (text, "no .npz"),
        (uneven, "different numbers"),
    ):
        with pytest.raises(UserError, match=told):
            samples.read_samples(path, None, None)
    with pytest.raises(UserError, match=r"labels\.tsv:1: a line is NAME"):
        samples.read_samples(uneven, None, labels)
