"""The guest `crop`: boxes, their order, and the strips cut out of the image."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from guest import Array, Guest, GuestError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Guests = Callable[[str], Guest]
SIDE = 736
"""Image and map of this side lie on each other pixel by pixel."""
BLANK = np.zeros((SIDE, SIDE, 3), np.uint8)


def crop(guest: Guests, image: Array, surface: Array, size: Any = None) -> tuple[Array, Array, int]:
    height_width = np.array(image.shape[:2] if size is None else size, np.int32)
    strips, boxes, count, found = guest("crop")(
        [image, np.asarray(surface, np.float32)[None, None], height_width], 4
    )
    assert len(boxes) == count[0] <= found[0]
    assert len(strips) == max(count[0], 1)
    return strips, boxes, int(found[0])


def axes(centre: tuple[float, float], degrees: float) -> tuple[Array, Array]:
    """Coordinates along and across a turned line through the centre, for every pixel."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    turn = math.radians(degrees)
    dx, dy = x - centre[0], y - centre[1]
    return dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)


def line(centre: tuple[float, float], length: int, height: int, degrees: float = 0.0) -> Array:
    along, across = axes(centre, degrees)
    inside = (abs(along) <= length / 2) & (abs(across) <= height / 2)
    return np.where(inside, np.float32(0.9), np.float32(0))


def grown(length: int, height: int) -> float:
    """What DB's unclipping by 1.6 adds on each side."""
    return length * height * 1.6 / (2 * (length + height))


def corners(centre: tuple[float, float], length: int, height: int, degrees: float) -> Array:
    turn, pad = math.radians(degrees), grown(length, height)
    a, b = length / 2 + pad, height / 2 + pad
    along, across = np.array([-a, a, a, -a]), np.array([-b, -b, b, b])
    x = centre[0] + along * math.cos(turn) - across * math.sin(turn)
    y = centre[1] + along * math.sin(turn) + across * math.cos(turn)
    return np.stack([x, y], -1)


def test_no_text_gives_one_blank_strip_and_no_box(guest: Guests) -> None:
    strips, boxes, found = crop(guest, BLANK + 200, np.zeros((SIDE, SIDE)))
    assert strips.shape == (1, 3, 48, 320)
    assert not strips.any()
    assert boxes.shape == (0, 4, 2)
    assert found == 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(80, 260), height=st.integers(12, 44), degrees=st.floats(-42, 42).map(float)
)
def test_a_turned_line_gets_the_grown_rectangle_around_it(
    guest: Guests, length: int, height: int, degrees: float
) -> None:
    centre = (360, 350)
    _, boxes, _ = crop(guest, BLANK, line(centre, length, height, degrees))
    assert len(boxes) == 1
    # pixels are whole, the mask grows by one, corners are rounded twice
    assert np.abs(boxes[0] - corners(centre, length, height, degrees)).max() <= 4


@pytest.mark.parametrize("degrees", [0, 17, -30])
def test_the_strip_is_straight_and_upright(guest: Guests, degrees: float) -> None:
    centre, length, height = (360, 350), 240, 32
    along, across = axes(centre, degrees)
    image = np.stack([128 + along * 0.5, 128 + across * 2, np.full_like(along, 60)], -1)
    strips, boxes, _ = crop(
        guest, np.clip(image, 0, 255).astype(np.uint8), line(centre, length, height, degrees)
    )
    box = boxes[0]
    width = math.ceil(48 * int(np.hypot(*(box[1] - box[0]))) / int(np.hypot(*(box[3] - box[0]))))
    blue, green, red = (strips[0, :, :, : width - 1] / 2 + 0.5) * 255
    assert np.abs(blue - 60).max() <= 1.01
    for values, axis, slope in ((red, 1, 0.5), (green, 0, 2.0)):
        profile = values.mean(axis=1 - axis)
        assert np.abs(values - np.expand_dims(profile, 1 - axis)).max() <= 8
        extent = np.hypot(*(box[1] - box[0])) if axis else np.hypot(*(box[3] - box[0]))
        wanted = slope * extent * (len(profile) - 1) / (width if axis else 48)
        assert profile[-1] - profile[0] == pytest.approx(wanted, abs=6)
    assert not strips[0, :, :, width:].any()


def test_an_unturned_strip_equals_the_pixels(guest: Guests) -> None:
    image = np.random.default_rng(5).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    surface = np.zeros((SIDE, SIDE))
    # 17 x 200 pixels after the mask grew by one; the box is searched for the height 48
    surface[300:334, 100:400] = 0.9
    strips, boxes, _ = crop(guest, image, surface)
    (left, top), (right, bottom) = boxes[0][0].astype(int), boxes[0][2].astype(int)
    cut = image[top:bottom, left:right].astype(float)
    rows = (np.arange(48) + 0.5) * len(cut) / 48 - 0.5
    first = np.clip(np.floor(rows).astype(int), 0, len(cut) - 1)
    part = np.clip(rows - first, 0, 1)[:, None]
    column = (right - left) // 2
    wide = math.ceil(48 * (right - left) / (bottom - top))
    at = (column + 0.5) * (right - left) / wide - 0.5
    near, share = int(at), at - int(at)
    pixels = cut[:, near] * (1 - share) + cut[:, near + 1] * share
    wanted = pixels[first] * (1 - part) + pixels[np.minimum(first + 1, len(cut) - 1)] * part
    assert np.abs((strips[0, ::-1, :, column].T / 2 + 0.5) * 255 - wanted).max() <= 1.5


def test_a_column_of_text_is_turned_to_the_left(guest: Guests) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    image = np.stack([y // 3, x // 3, np.zeros_like(x)], -1).astype(np.uint8)
    strips, boxes, _ = crop(guest, image, line((300, 350), 30, 240))
    assert boxes[0][2][1] - boxes[0][0][1] > 240
    _, green, red = strips[0, :, :, :180]
    assert (np.diff(red.mean(axis=0)) >= 0).all()
    assert red[0, -1] - red[0, 0] > 0.5
    assert (np.diff(green.mean(axis=1)) <= 0).all()


def test_boxes_stand_in_reading_order(guest: Guests) -> None:
    surface = np.maximum.reduce(
        [
            line((500, 97), 150, 20),
            line((200, 103), 150, 20),
            line((350, 300), 150, 20),
            line((120, 500), 150, 20),
        ]
    )
    _, boxes, _ = crop(guest, BLANK, surface)
    assert [round(float(box[:, 0].mean()), -1) for box in boxes] == [200, 500, 350, 120]


def test_what_is_faint_or_tiny_is_no_text(guest: Guests) -> None:
    surface = np.zeros((SIDE, SIDE))
    surface[100:120, 100:300] = 0.29
    surface[200:220, 100:300] = 0.45
    surface[300, 100:300] = 0.9
    surface[400:402, 100:102] = 0.9
    _, boxes, found = crop(guest, BLANK, surface)
    assert found == len(boxes) == 0


def test_more_lines_than_fit_are_counted(guest: Guests) -> None:
    surface = np.zeros((SIDE, SIDE))
    for row in range(20):
        for column in range(15):
            surface[row * 36 + 10 : row * 36 + 20, column * 48 + 10 : column * 48 + 34] = 0.9
    strips, boxes, found = crop(guest, BLANK, surface)
    assert found == 300
    assert len(boxes) == 65536 // 320
    assert strips.shape == (204, 3, 48, 320)


def test_boxes_are_told_in_pixels_of_the_file(guest: Guests) -> None:
    surface = line((360, 350), 200, 20)
    _, boxes, _ = crop(guest, BLANK, surface)
    _, scaled, _ = crop(guest, BLANK, surface, size=(SIDE * 2, SIDE * 3))
    assert np.allclose(scaled, boxes * (3, 2))


def test_the_bars_of_a_long_strip_are_taken_off_again(guest: Guests) -> None:
    # canvas 200 x 800, its map 736 x 2944, the image in rows 80 to 120
    surface = np.zeros((736, 2944))
    surface[340:400, 400:1200] = 0.9
    _, boxes, _ = crop(guest, np.zeros((40, 800, 3), np.uint8), surface)
    scale = 200 / 736
    pad = grown(800, 60) * scale
    assert np.abs(boxes[0][0] - (400 * scale - pad, max(340 * scale - 80 - pad, 0))).max() <= 2
    assert np.abs(boxes[0][2] - (1200 * scale + pad, min(400 * scale - 80 + pad, 40))).max() <= 2


def test_a_map_of_nothing_but_text_is_one_box(guest: Guests) -> None:
    _, boxes, _ = crop(guest, BLANK, np.ones((SIDE, SIDE)))
    assert boxes.tolist() == [[[0, 0], [735, 0], [735, 735], [0, 735]]]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    density=st.floats(0, 1),
)
def test_any_map_gives_boxes_inside_the_image_never_a_trap(
    guest: Guests, height: int, width: int, seed: int, density: float
) -> None:
    random = np.random.default_rng(seed)
    surface = (random.random((height, width)) < density) * random.random((height, width)) * 2
    surface[random.random((height, width)) < 0.02] = random.choice([np.nan, np.inf, -np.inf])
    image = random.integers(0, 256, (*random.integers(1, 90, 2), 3), np.uint8)
    _, boxes, _ = crop(guest, image, surface)
    assert (boxes >= 0).all()
    assert (boxes <= image.shape[1::-1]).all()


@pytest.mark.parametrize(
    ("image", "surface", "size", "sentence"),
    [
        (BLANK[..., :2], np.zeros((1, 1, 32, 32)), [8, 8], "crop takes image"),
        (BLANK, np.zeros((1, 2, 32, 32)), [8, 8], "crop takes image"),
        (BLANK, np.zeros((32, 32)), [8, 8], "crop takes image"),
        (BLANK, np.zeros((1, 1, 32, 32)), [8], "crop takes image"),
        (BLANK, np.zeros((1, 1, 0, 32)), [8, 8], "a side may have 1 to 16384"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    guest: Guests, image: Array, surface: Array, size: Any, sentence: str
) -> None:
    with pytest.raises(GuestError, match=sentence):
        guest("crop")([image, surface.astype(np.float32), np.array(size, np.int32)], 4)
