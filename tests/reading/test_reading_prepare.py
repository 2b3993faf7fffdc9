"""The guest `prepare` against the resize and normalisation written in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
from guest import Array, Guest, GuestError

Guests = Callable[[str], Guest]
LEVEL = 2 / 255


def resized(image: Array, height: int, width: int) -> Array:
    """Bilinear with aligned pixel centres, edges repeated, to whole levels."""

    def taps(source: int, target: int) -> tuple[Array, Array, Array]:
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        first = np.minimum(at.astype(int), source - 1)
        return first, np.minimum(first + 1, source - 1), at - first

    top, bottom, down = taps(image.shape[0], height)
    left, right, across = taps(image.shape[1], width)
    pixels = image.astype(float)
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[None, :, None] + rows[:, right] * across[None, :, None]


def noise(height: int, width: int) -> Array:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "became"),
    [
        (480, 640, (736, 992)),  # 736 x 981, to the nearest multiple of 32
        (736, 736, (736, 736)),
        (1000, 800, (992, 800)),  # 31.25 x 32: downwards
        (752, 1000, (768, 992)),  # 23.5 and 31.25: halves to even
    ],
)
def test_equals_numpy(guest: Guests, height: int, width: int, became: tuple[int, int]) -> None:
    image = noise(height, width)
    (x,) = guest("prepare")([image], 1)
    assert x.shape == (1, 3, *became)
    wanted = resized(image, *became) / 255 * 2 - 1
    # fixed point of 11 bits: at most a level away
    assert np.abs(x[0] - wanted.transpose(2, 0, 1)[::-1]).max() <= LEVEL


def test_without_a_resize_it_is_exact_and_blue_comes_first(guest: Guests) -> None:
    image = noise(736, 768)
    (x,) = guest("prepare")([image], 1)
    wanted = (image.astype(np.float32) / np.float32(255) - 0.5) / 0.5
    assert np.allclose(x[0], wanted.transpose(2, 0, 1)[::-1], atol=1e-6)


def test_a_long_strip_gets_black_bars_above_and_below(guest: Guests) -> None:
    (x,) = guest("prepare")([np.full((40, 800, 3), 255, np.uint8)], 1)
    # 800 / 8 * 2 = 200 rows: 80 above, 40 of the image, 80 below
    assert x.shape == (1, 3, 736, 2944)
    column = x[0, 0, :, 1000]
    assert (column[:290] == -1).all()
    assert (column[300:436] == 1).all()
    assert (column[446:] == -1).all()


def test_a_tall_strip_gets_bars_at_its_sides(guest: Guests) -> None:
    (x,) = guest("prepare")([np.full((800, 40, 3), 255, np.uint8)], 1)
    assert x.shape == (1, 3, 2944, 736)
    assert (x[0, :, 1000, 300:436] == 1).all()
    assert (x[0, :, 1000, :290] == -1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (31, 2), (5, 90)])
def test_tiny_images_work(guest: Guests, shape: tuple[int, ...]) -> None:
    (x,) = guest("prepare")([noise(*shape)], 1)
    assert min(x.shape[2:]) >= 736
    assert all(side % 32 == 0 for side in x.shape[2:])


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 5, 4), (5, 5), (9000, 1, 3)])
def test_what_is_no_rgb_image_is_refused(guest: Guests, shape: tuple[int, ...]) -> None:
    with pytest.raises(GuestError, match="prepare takes one image"):
        guest("prepare")([np.zeros(shape, np.uint8)], 1)
