"""The guest `text` against CTC's best path written in Python."""

from collections.abc import Callable
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from guest import Array, Guest, GuestError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Guests = Callable[[str], Guest]
CHARACTERS = ["a", "ß", "字", "😀", "-", " "]
ENTRIES = len(CHARACTERS)


def table(characters: list[str] = CHARACTERS) -> Array:
    return np.frombuffer("\n".join(characters).encode(), np.uint8)


def read(
    guest: Guests, probabilities: Any, count: int | None = None, characters: list[str] = CHARACTERS
) -> tuple[list[str], list[float], list[int]]:
    array = np.asarray(probabilities, np.float32)
    number = np.array([len(array) if count is None else count], np.int32)
    text, scores, index = guest("text")([array, number, table(characters)], 3)
    decoded = text.tobytes().decode()
    return (decoded.split("\n") if decoded else []), scores.tolist(), index.tolist()


def rows(path: list[int], sure: float = 0.9) -> Array:
    """Probabilities of one crop whose best class at each step is the path's."""
    one = np.full((len(path), ENTRIES + 1), (1 - sure) / ENTRIES, np.float32)
    one[np.arange(len(path)), path] = sure
    return one


def best_path(crop: Array) -> tuple[str, float]:
    """CTC: the best class of each step, repeats merged, blanks (class 0) dropped."""
    steps = [(int(row.argmax()), float(row.max())) for row in crop]
    merged = [next(group) for _, group in groupby(steps, key=lambda step: step[0])]
    kept = [step for step in merged if step[0] != 0]
    text = "".join(CHARACTERS[one - 1] for one, _ in kept)
    return text, float(np.mean([sure for _, sure in kept])) if kept else 0.0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    crops=st.integers(0, 5),
    steps=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    sharp=st.floats(0.1, 12),
)
def test_equals_the_best_path(
    guest: Guests, crops: int, steps: int, seed: int, sharp: float
) -> None:
    logits = np.random.default_rng(seed).normal(size=(crops, steps, ENTRIES + 1)) * sharp
    raised = np.exp(logits - logits.max(axis=2, keepdims=True))
    probabilities = (raised / raised.sum(axis=2, keepdims=True)).astype(np.float32)
    wanted = [(*best_path(crop), at) for at, crop in enumerate(probabilities)]
    wanted = [one for one in wanted if one[0] and one[1] >= 0.5]
    lines, scores, index = read(guest, probabilities)
    assert lines == [one[0] for one in wanted]
    assert np.allclose(scores, [one[1] for one in wanted], atol=1e-6)
    assert index == [one[2] for one in wanted]


def test_a_blank_between_keeps_a_double_letter(guest: Guests) -> None:
    assert read(guest, [rows([1, 1, 0, 1, 2, 2])])[0] == ["aaß"]


def test_a_line_that_is_not_sure_enough_is_dropped(guest: Guests) -> None:
    lines, _, index = read(guest, [rows([1, 2], sure=0.45), rows([3, 4]), rows([0, 0])])
    assert lines == ["字😀"]
    assert index == [1]


def test_padding_crops_are_not_read(guest: Guests) -> None:
    assert read(guest, [rows([1, 2]), rows([3, 4])], count=1)[0] == ["aß"]
    assert read(guest, [rows([1, 2])], count=0) == ([], [], [])


def test_the_first_of_equal_classes_wins(guest: Guests) -> None:
    one = np.full((1, 1, ENTRIES + 1), 0.6, np.float32)
    one[0, 0, 0] = 0
    assert read(guest, one)[0] == ["a"]


def test_what_is_not_a_number_is_not_read(guest: Guests) -> None:
    one = np.full((1, 3, ENTRIES + 1), np.nan, np.float32)
    assert read(guest, one) == ([], [], [])


@pytest.mark.parametrize(
    ("count", "characters", "sentence"),
    [
        (3, CHARACTERS, "count is not between 0 and the 2 crops"),
        (-1, CHARACTERS, "count is not between 0 and the 2 crops"),
        (2, CHARACTERS[:-1], "the table has 5 entries, the classes ask for 6"),
        (2, [*CHARACTERS, "x"], "the table has 7 entries, the classes ask for 6"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    guest: Guests, count: int | None, characters: list[str], sentence: str
) -> None:
    with pytest.raises(GuestError) as caught:
        read(guest, [rows([1]), rows([2])], count, characters)
    assert str(caught.value) == sentence
    assert caught.value.code == 1
