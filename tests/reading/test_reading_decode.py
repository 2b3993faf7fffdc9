"""The guest `decode`: image files to pixels, and what it says of files that are none."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guest import Array, Guest, GuestError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Guests = Callable[[str], Guest]
Png = Callable[[Any], Array]
DATA = Path(__file__).parent / "data"
MODULES = Path(__file__).resolve().parents[2] / "examples" / "reading" / "modules"
BAD_INPUT, TOO_LARGE = 1, 2


def gradient() -> Array:
    y, x = np.mgrid[0:40, 0:64]
    return np.stack([x * 4, y * 6, np.full_like(x, 128)], -1).astype(np.uint8)


def noise(*shape: int) -> Array:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def file(name: str) -> Array:
    return np.fromfile(DATA / name, np.uint8)


def refusal(guest: Guests, data: Any) -> GuestError:
    with pytest.raises(GuestError) as caught:
        guest("decode")([np.asarray(data, np.uint8)], 2)
    return caught.value


def test_png_pixels_are_exact(guest: Guests, png: Png) -> None:
    pixels = noise(45, 61, 3)
    image, size = guest("decode")([png(pixels)], 2)
    assert np.array_equal(image, pixels)
    assert size.tolist() == [45, 61]


def test_gray_png_has_three_equal_channels(guest: Guests, png: Png) -> None:
    pixels = noise(33, 40)
    image, _ = guest("decode")([png(pixels)], 2)
    assert np.array_equal(image, np.repeat(pixels[..., None], 3, axis=2))


def test_transparent_parts_stand_on_white(guest: Guests, png: Png) -> None:
    pixels = noise(32, 32, 4)
    image, _ = guest("decode")([png(pixels)], 2)
    alpha = pixels[..., 3:].astype(float) / 255
    assert np.abs(image - (pixels[..., :3] * alpha + 255 * (1 - alpha))).max() <= 0.5 + 1e-9
    gray, _ = guest("decode")([png(pixels[..., 2:])], 2)
    assert np.abs(gray - (pixels[..., 2:3] * alpha + 255 * (1 - alpha))).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg"])
def test_jpeg_is_close_to_what_was_encoded(guest: Guests, name: str) -> None:
    image, size = guest("decode")([file(name)], 2)
    assert size.tolist() == [40, 64]
    assert np.abs(image.astype(int) - gradient()).max() <= 6


def test_bmp_is_exact(guest: Guests) -> None:
    image, _ = guest("decode")([file("gradient.bmp")], 2)
    assert np.array_equal(image, gradient())


def test_one_pixel_becomes_a_small_image_of_its_colour(guest: Guests, png: Png) -> None:
    image, size = guest("decode")([png([[[9, 80, 200]]])], 2)
    assert size.tolist() == [1, 1]
    assert image.shape == (32, 32, 3)
    assert (image == (9, 80, 200)).all()


@pytest.mark.parametrize(
    ("height", "width", "became"),
    [
        (2000, 1000, (2000, 1000)),
        (2001, 1000, (1984, 992)),
        (40, 4000, (32, 1984)),
        (1, 2000, (32, 1984)),
        (20, 300, (32, 448)),
        (30, 31, (30, 31)),
    ],
)
def test_sides_come_between_30_and_2000(
    guest: Guests, png: Png, height: int, width: int, became: tuple[int, int]
) -> None:
    image, size = guest("decode")([png(np.full((height, width), 77))], 2)
    assert image.shape == (*became, 3)
    assert size.tolist() == [height, width]
    assert (image == 77).all()


@pytest.mark.parametrize("name", ["baseline.jpg", "progressive.jpg"])
def test_a_cut_jpeg_is_refused(guest: Guests, name: str) -> None:
    for kept in (0.3, 0.7, 0.97):
        data = file(name)
        error = refusal(guest, data[: int(len(data) * kept)])
        assert error.code == BAD_INPUT
        assert "cut short" in str(error) or "damaged" in str(error)


def test_the_end_marker_of_a_thumbnail_does_not_hide_a_cut(guest: Guests) -> None:
    whole = file("baseline.jpg").tobytes()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(whole)) + whole
    with_thumbnail = whole[:2] + thumbnail + whole[2:]
    image, _ = guest("decode")([np.frombuffer(with_thumbnail, np.uint8)], 2)
    assert image.shape == (40, 64, 3)
    error = refusal(guest, np.frombuffer(with_thumbnail[:-100], np.uint8))
    assert str(error) == "the JPEG file is cut short: it has no end marker"


def exif(order: str, value: int) -> bytes:
    tags = struct.pack(order + "HHHLHHHHLHH", 2, 0x0100, 3, 1, 64, 0, 0x0112, 3, 1, value, 0)
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", 8) + tags
    body = b"Exif\0\0" + tiff
    return b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
        (9, lambda a: a),
    ],
)
def test_a_picture_of_a_turned_camera_is_upright(
    guest: Guests, order: str, orientation: int, seen: Callable[[Array], Array]
) -> None:
    plain = file("baseline.jpg").tobytes()
    turned = plain[:2] + exif(order, orientation) + plain[2:]
    wanted = seen(guest("decode")([np.frombuffer(plain, np.uint8)], 2)[0])
    image, size = guest("decode")([np.frombuffer(turned, np.uint8)], 2)
    assert np.array_equal(image, wanted)
    assert tuple(size) == wanted.shape[:2]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=80), order=st.sampled_from([b"II*\0", b"MM\0*", b""]))
def test_damaged_exif_is_passed_over(guest: Guests, junk: bytes, order: str) -> None:
    plain = file("baseline.jpg").tobytes()
    body = b"Exif\0\0" + order + junk
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + plain[2:]
    image, _ = guest("decode")([np.frombuffer(data, np.uint8)], 2)
    assert sorted(image.shape) == [3, 40, 64]


def test_a_cut_png_is_refused(guest: Guests, png: Png) -> None:
    data = png(noise(60, 60, 3))
    error = refusal(guest, data[: len(data) // 2])
    assert error.code == BAD_INPUT
    assert str(error).startswith("the image cannot be decoded: ")


def test_huge_dimensions_in_the_header_are_refused_by_name(guest: Guests, png: Png) -> None:
    data = bytearray(png(noise(4, 4, 3)).tobytes())
    data[16:24] = struct.pack(">II", 100_000, 50_000)
    error = refusal(guest, np.frombuffer(bytes(data), np.uint8))
    assert error.code == TOO_LARGE
    assert str(error) == "the image has 100000 x 50000 pixels, the limit is 50 million in all"


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a"]
)
def test_what_is_no_image_is_refused_in_one_sentence(guest: Guests, data: Any) -> None:
    error = refusal(guest, np.frombuffer(data, np.uint8))
    assert error.code == BAD_INPUT
    assert str(error).startswith(("the image file is empty", "the file is no", "the image has no"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["baseline.jpg", "progressive.jpg", "gradient.bmp"]),
    changes=st.lists(st.tuples(st.integers(0, 899), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_files_give_pixels_or_a_sentence_never_a_trap(
    guest: Guests, name: str, changes: list[tuple[int, int]]
) -> None:
    data = file(name).copy()
    for at, value in changes:
        data[at % len(data)] = value
    outcome: Array | GuestError
    try:
        outcome = guest("decode")([data], 2)[0]
    except GuestError as error:
        outcome = error
    if isinstance(outcome, GuestError):
        assert outcome.code in {1, 2, 3}
        assert str(outcome)
    else:
        assert outcome.ndim == 3
        assert max(outcome.shape) <= 2000


def test_memory_that_does_not_suffice_is_an_error_not_a_trap(png: Png) -> None:
    small = Guest(MODULES / "decode.wasm", memory_bytes=1 << 20)
    with pytest.raises(GuestError) as caught:
        small([png(np.zeros((2000, 2000)))], 2)
    assert str(caught.value).startswith("the image of 2000 x 2000 pixels takes more memory than")
    assert caught.value.code == 3
