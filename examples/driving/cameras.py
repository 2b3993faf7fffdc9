"""From a calibrated fisheye camera to the 19 numbers that `project` looks up the ground with.

    python examples/driving/cameras.py     writes tables/{front,back,left,right}.camera anew

The calibration (camera matrix, distortion, scale and shift of the undistorted picture, and the
homography from that to the ground) and the layout of the view are those of
surround-view-system-introduction by Zhao Liang (MIT licence).
"""

import re
import sys
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from material import CAMERAS, SIDES
from reference import HERE, Array

from protocols.errors import UserError

VIEW: Final = (1200, 1600)
"""Width and height of the whole view in pixels of the calibration."""
ACROSS: Final = 500
"""Width of what the left and the right camera give."""
ALONG: Final = 550
"""Height of what the front and the back camera give."""
SCALE: Final = 0.5
"""Pixels of the view that is made for each pixel of the calibration."""
NUMBERS: Final = 19
MATRIX: Final = re.compile(
    r"^(?P<name>\w+): !!opencv-matrix\s+rows: (?P<rows>\d+)\s+cols: (?P<columns>\d+)\s+dt: \w\s+"
    r"data: \[(?P<data>[^\]]*)\]",
    re.MULTILINE,
)


class Calibration(NamedTuple):
    """What was measured of one camera."""

    camera: Array
    """float64[3,3], focal lengths and centre."""
    distortion: Array
    """float64[4], k1 to k4."""
    ground: Array
    """float64[3,3], from the undistorted picture to the ground."""
    scale: Array
    """float64[2], of the focal lengths in the undistorted picture."""
    shift: Array
    """float64[2], of its centre, pixels."""


def calibration(path: Path) -> Calibration:
    """Read a calibration in OpenCV's YAML. Raises UserError when a matrix is missing."""
    found = {}
    for match in MATRIX.finditer(path.read_text(encoding="utf-8")):
        values = [float(one) for one in match["data"].split(",")]
        shape = (int(match["rows"]), int(match["columns"]))
        if len(values) != shape[0] * shape[1]:
            raise UserError(f"{path}: {match['name']} has {len(values)} numbers, not {shape}")
        found[match["name"]] = np.array(values).reshape(shape)
    names = ("camera_matrix", "dist_coeffs", "project_matrix", "scale_xy", "shift_xy")
    if missing := [name for name in names if name not in found]:
        raise UserError(f"{path} has no {', '.join(missing)}: it is no calibration of a camera")
    camera, distortion, ground, scale, shift = (found[name] for name in names)
    return Calibration(camera, distortion.ravel(), ground, scale.ravel(), shift.ravel())


def table(side: str, known: Calibration, scale: float = SCALE) -> Array:
    """Return `project`'s constant float32[19] for the camera on a side of the car."""
    flat = known.camera.copy()
    flat[0, 0] *= known.scale[0]
    flat[1, 1] *= known.scale[1]
    flat[:2, 2] += known.shift
    width, height = patch_size(side, scale)
    centre = np.array(
        [[1 / scale, 0, 0.5 / scale - 0.5], [0, 1 / scale, 0.5 / scale - 0.5], [0, 0, 1]]
    )
    to_ray = np.linalg.inv(flat) @ np.linalg.inv(known.ground) @ _laid(side) @ centre
    # Only its direction counts: in the middle of the patch it points forwards, by 1.
    to_ray /= (to_ray @ [width / 2, height / 2, 1])[2]
    camera = known.camera
    lens = [camera[0, 0], camera[1, 1], camera[0, 2], camera[1, 2], *known.distortion]
    return np.array([*to_ray.ravel(), *lens, width, height], np.float32)


def patch_size(side: str, scale: float = SCALE) -> tuple[int, int]:
    """Return width and height of what a camera gives, pixels."""
    size = (VIEW[0], ALONG) if side in ("front", "back") else (ACROSS, VIEW[1])
    return round(size[0] * scale), round(size[1] * scale)


def _laid(side: str) -> Array:
    """Return float64[3,3]: from a point of the view to one of the ground as the camera sees it.

    A camera sees upwards what lies ahead of it; in the view the front of the car is upwards.
    """
    last_x, last_y = VIEW[0] - 1, VIEW[1] - 1
    return np.array(
        {
            "front": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            "back": [[-1, 0, last_x], [0, -1, ALONG - 1], [0, 0, 1]],
            "left": [[0, -1, last_y], [1, 0, 0], [0, 0, 1]],
            "right": [[0, 1, 0], [-1, 0, ACROSS - 1], [0, 0, 1]],
        }[side],
        float,
    )


def main() -> int:
    """Write the tables."""
    for side in SIDES:
        made = table(side, calibration(CAMERAS / f"{side}.yaml"))
        (HERE / "tables" / f"{side}.camera").write_bytes(made.astype("<f4").tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
