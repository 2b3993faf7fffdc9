"""The bird's-eye view: geometry against the calibration, pixels against numpy, the picture."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cameras import ALONG, SCALE, VIEW, calibration, patch_size, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from material import CAMERAS, SIDES, surround_request
from reference import HERE, SURROUND, Array, Guest, GuestError, Runner
from surround import main, png

from protocols.errors import UserError

Guests = Callable[[str], Guest]
Runners = Callable[[Path], Runner]
pictures = pytest.mark.skipif(not CAMERAS.is_dir(), reason=f"needs the pictures in {CAMERAS}")


@pytest.fixture(scope="session")
def values(runner: Runners) -> dict[tuple[str, str], Array]:
    """Every value of one run on the real pictures."""
    return runner(SURROUND).values(surround_request())


@pytest.fixture(scope="session")
def decode() -> Guest:
    """Give the decoder, which is one with `project` in the service."""
    return Guest(HERE.parent / "reading" / "modules" / "decode.wasm")


def bent(x: Array, y: Array, numbers: Array) -> tuple[Array, Array]:
    """Where a fisheye sees the direction (x, y, 1)."""
    fx, fy, cx, cy, *k = numbers
    r = np.hypot(x, y)
    angle = np.arctan(r)
    on_sensor = angle * (1 + sum(one * angle ** (2 * n) for n, one in enumerate(k, 1)))
    scale = np.divide(on_sensor, r, out=np.ones_like(r), where=r > 1e-6)
    return fx * x * scale + cx, fy * y * scale + cy


def looked_up(camera: Array) -> tuple[Array, Array]:
    """Where each pixel of the patch is seen; nan behind the camera."""
    numbers = camera.astype(float)
    width, height = int(numbers[17]), int(numbers[18])
    row, column = np.mgrid[0:height, 0:width].astype(float)
    x, y, depth = np.tensordot(
        numbers[:9].reshape(3, 3), np.stack([column, row, np.ones_like(row)]), 1
    )
    depth[depth < 1e-6] = np.nan
    return bent(x / depth, y / depth, numbers[9:17])


def projected(image: Array, camera: Array) -> Array:
    """What `project` gives, in numpy and without rounding."""
    u, v = looked_up(camera)
    height, width = image.shape[:2]
    inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
    u, v = np.where(inside, u, 0), np.where(inside, v, 0)
    left, top = u.astype(int), v.astype(int)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    across, down = (u - left)[..., None], (v - top)[..., None]
    pixels = image.astype(float)
    upper = pixels[top, left] * (1 - across) + pixels[top, right] * across
    lower = pixels[bottom, left] * (1 - across) + pixels[bottom, right] * across
    seen = upper * (1 - down) + lower * down
    return np.where(inside[..., None], np.maximum(seen, 0), 0)


@pictures
@pytest.mark.parametrize("side", SIDES)
def test_project_equals_numpy_on_the_real_picture(
    values: dict[tuple[str, str], Array], decode: Guest, side: str
) -> None:
    camera = np.fromfile(HERE / "tables" / f"{side}.camera", "<f4")
    image, _ = decode([np.fromfile(CAMERAS / f"{side}.png", np.uint8)], 2)
    patch = values[f"look-{side}", "patch"]
    wanted = projected(image, camera)
    assert patch.shape[1::-1] == patch_size(side)
    # weights of 1/256 on differences of up to 255 levels, twice, and the rounding
    assert np.abs(patch - wanted).max() <= 3
    assert np.abs(patch - wanted).mean() < 0.5


@pictures
@pytest.mark.parametrize("side", SIDES)
def test_a_table_leads_back_the_way_of_the_calibration(side: str) -> None:
    known = calibration(CAMERAS / f"{side}.yaml")
    camera = table(side, known)
    flat = known.camera.copy()
    flat[0, 0], flat[1, 1] = flat[0, 0] * known.scale[0], flat[1, 1] * known.scale[1]
    flat[:2, 2] += known.shift
    # points of the undistorted picture, forwards: to the ground, and to the sensor
    at = np.stack([*np.meshgrid(np.linspace(350, 600, 9), np.linspace(300, 500, 9))], -1).reshape(
        -1, 2
    )
    one = np.concatenate([at, np.ones((len(at), 1))], 1).T
    ground = known.ground @ one
    ground = ground[:2] / ground[2]
    ray = np.linalg.inv(flat) @ one
    u, v = bent(ray[0] / ray[2], ray[1] / ray[2], camera[9:17].astype(float))
    view = {
        "front": lambda x, y: (x, y),
        "back": lambda x, y: (VIEW[0] - 1 - x, ALONG - 1 - y),
        "left": lambda x, y: (y, VIEW[1] - 1 - x),
        "right": lambda x, y: (499 - y, x),
    }[side](*ground)
    patch = (np.array(view) + 0.5) * SCALE - 0.5
    numbers = camera.astype(float)
    x, y, depth = numbers[:9].reshape(3, 3) @ np.concatenate([patch, np.ones((1, len(at)))])
    again = bent(x / depth, y / depth, numbers[9:17])
    ahead = depth > 0
    assert ahead.sum() > 40
    assert np.abs(np.array(again) - [u, v])[:, ahead].max() < 0.05


@pictures
def test_the_committed_tables_are_those_of_the_calibration() -> None:
    for side in SIDES:
        committed = np.fromfile(HERE / "tables" / f"{side}.camera", "<f4")
        made = table(side, calibration(CAMERAS / f"{side}.yaml"))
        assert np.allclose(committed, made, rtol=1e-5, atol=1e-9)


def test_a_calibration_that_lacks_a_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "camera.yaml"
    path.write_text(
        "camera_matrix: !!opencv-matrix\n  rows: 1\n  cols: 2\n  dt: d\n  data: [ 1, 2 ]"
    )
    with pytest.raises(UserError, match="has no dist_coeffs, project_matrix, scale_xy, shift_xy"):
        calibration(path)
    path.write_text(path.read_text().replace("1, 2", "1, 2, 3"))
    with pytest.raises(UserError, match="camera_matrix has 3 numbers"):
        calibration(path)


RING = (("front", "right"), ("right", "back"), ("back", "left"), ("left", "front"))


def fused(patch: dict[str, Array]) -> tuple[Array, Array]:
    """What `fuse` gives outside the car, in numpy; and where the car is."""
    height, width = patch["left"].shape[0], patch["front"].shape[1]
    at = {
        "front": (0, 0),
        "left": (0, 0),
        "back": (height - len(patch["back"]), 0),
        "right": (0, width - patch["right"].shape[1]),
    }
    layer, seen = {}, {}
    for side, one in patch.items():
        whole = np.zeros((height, width, 3))
        there = np.zeros((height, width), bool)
        top, left = at[side]
        whole[top : top + len(one), left : left + one.shape[1]] = one
        there[top : top + len(one), left : left + one.shape[1]] = one.any(axis=2)
        layer[side], seen[side] = whole, there
    ratio = []
    for before, after in RING:
        both = seen[before] & seen[after]
        ratio.append(np.log((layer[before][both].sum(0) + 1) / (layer[after][both].sum(0) + 1)))
    spread = np.array(ratio) - np.mean(ratio, axis=0)
    gain = np.concatenate([np.zeros((1, 3)), np.cumsum(spread, axis=0)[:3]])
    gain = np.clip(np.exp(gain - gain.mean(axis=0)), 0.5, 2)
    for (side, _), scale in zip(RING, gain, strict=True):
        layer[side] = np.clip(np.rint(layer[side] * scale), 0, 255)
    y, x = np.mgrid[0:height, 0:width]
    inner_left, inner_right = patch["left"].shape[1], at["right"][1]
    inner_top, inner_bottom = len(patch["front"]), at["back"][0]
    dx = np.where(x < inner_left, inner_left - x, x - inner_right + 1)
    dy = np.where(y < inner_top, inner_top - y, y - inner_bottom + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.clip((dy / (dx + dy) - 0.3) / 0.4, 0, 1)
    along, across = seen["front"] | seen["back"], seen["left"] | seen["right"]
    share = np.where(along & across, share, along)[..., None]
    view = share * (layer["front"] + layer["back"]) + (1 - share) * (layer["left"] + layer["right"])
    car = (x >= inner_left) & (x < inner_right) & (y >= inner_top) & (y < inner_bottom)
    return view, car


@pictures
def test_fuse_equals_numpy_on_the_real_patches(values: dict[tuple[str, str], Array]) -> None:
    view, car = fused({side: values[f"look-{side}", "patch"].astype(float) for side in SIDES})
    made = values["fuse", "view"]
    assert made.shape == (800, 600, 3)
    assert np.abs(made - view)[~car].max() <= 1
    assert (made[car] == made[car][:, :1]).all()


@pictures
def test_circles_lie_where_the_cloth_has_them_and_neighbours_agree(
    values: dict[tuple[str, str], Array],
) -> None:
    view = values["fuse", "view"].astype(float).mean(axis=2)
    # a cloth of squares of 20 pixels lies around the car, with circles in rows of two
    columns = {"left": (170, 210), "right": (390, 430)}
    for side in columns.values():
        for x in side:
            for y in (328, 368, 408, 448, 488):
                assert view[y - 4 : y + 5, x - 4 : x + 5].mean() < 145
            for y in (348, 388, 428, 468):
                assert view[y - 2 : y + 3, x - 16 : x - 12].mean() > 180
    for y in (172, 211, 590, 630):
        for x in (270, 310):
            assert view[y - 4 : y + 5, x - 4 : x + 5].mean() < 145


def test_the_mean_of_a_corner_is_made_equal(guest: Guests) -> None:
    level = {"front": 100, "back": 100, "left": 130, "right": 80}
    shapes = {"front": (20, 90), "back": (20, 90), "left": (120, 30), "right": (120, 30)}
    patch = [np.full((*shapes[side], 3), level[side], np.uint8) for side in SIDES]
    (view,) = guest("fuse")(patch, 1)
    corner = view[:20, :30].astype(int)
    assert corner.max() - corner.min() <= 1
    # what four corners disagree on is spread evenly, so the opposite corners differ no more
    assert np.ptp(view[100:, 60:].astype(int)) <= 1


def test_what_one_camera_does_not_see_comes_from_the_other(guest: Guests) -> None:
    shapes = {"front": (20, 90), "back": (20, 90), "left": (120, 30), "right": (120, 30)}
    patch = {side: np.full((*shapes[side], 3), 90, np.uint8) for side in SIDES}
    patch["front"][:, :30] = 0
    patch["left"][:5] = 0
    (view,) = guest("fuse")([patch[side] for side in SIDES], 1)
    assert not view[:5, :30].any()
    assert (view[5:20, :30] == 90).all()


@pytest.mark.parametrize(
    ("side", "shape"),
    [("back", (20, 80, 3)), ("right", (110, 30, 3)), ("left", (120, 70, 3)), ("front", (0, 90, 3)),
     ("front", (20, 90, 4)), ("left", (3000, 30, 3))],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_refused(
    guest: Guests, side: str, shape: tuple[int, ...]
) -> None:
    shapes = {
        "front": (20, 90, 3),
        "back": (20, 90, 3),
        "left": (120, 30, 3),
        "right": (120, 30, 3),
    }
    shapes[side] = shape
    with pytest.raises(GuestError, match="fuse takes front, back, left, right"):
        guest("fuse")([np.ones(shapes[one], np.uint8) for one in SIDES], 1)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    numbers=st.lists(
        st.floats(-1e6, 1e6, width=32) | st.floats(width=32), min_size=17, max_size=17
    ),
    size=st.tuples(st.floats(-2, 40, width=32), st.floats(-2, 40, width=32)),
)
def test_no_camera_makes_project_leave_its_memory(
    guest: Guests, numbers: list[float], size: tuple[float, float]
) -> None:
    image = np.full((7, 9, 3), 200, np.uint8)
    camera = np.array([*numbers, *size], np.float32)
    if not (np.isfinite(camera).all() and min(size) >= 1):
        with pytest.raises(GuestError, match="a number that is none, or a patch beyond"):
            guest("project")([image, camera], 1)
        return
    (patch,) = guest("project")([image, camera], 1)
    assert patch.shape == (int(size[1]), int(size[0]), 3)
    assert set(np.unique(patch)) <= {0, 200}


def test_black_that_is_seen_differs_from_what_is_not(guest: Guests) -> None:
    straight = [1, 0, 0, 0, 1, 0, 0, 0, 1, 1e-3, 1e-3, 2, 2, 0, 0, 0, 0, 3, 2]
    (patch,) = guest("project")([np.zeros((5, 5, 3), np.uint8), np.array(straight, "f4")], 1)
    assert (patch == 1).all()
    with pytest.raises(GuestError, match="smaller than 2 pixels"):
        guest("project")([np.zeros((5, 1, 3), np.uint8), np.array(straight, "f4")], 1)


@pictures
def test_the_program_writes_a_picture(tmp_path: Path, values: dict[tuple[str, str], Array]) -> None:
    assert main([str(tmp_path / "view.png")]) == 0
    data = (tmp_path / "view.png").read_bytes()
    assert data == png(values["fuse", "view"])
    assert struct.unpack(">II", data[16:24]) == (600, 800)
    at = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[at : at + struct.unpack(">I", data[at - 8 : at - 4])[0]])
    assert len(rows) == 800 * (1 + 600 * 3)
