"""The inputs of each request, from the real data: photos of cars, an hour of a road, four cameras.

Each `..._request` function gives the named tensors of one request to the service of that name; they
are what `tona.Client.invoke` and the reference runner take.
"""

import csv
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from reference import HERE, Array

from protocols.errors import UserError

DATA: Final = HERE.parents[2] / "shared" / "data"
PHOTOS: Final = DATA / "plates_cars" / "eu"
SPEEDS: Final = DATA / "traffic" / "los_speed.csv"
CAMERAS: Final = DATA / "surround"
SIDES: Final = ("front", "back", "left", "right")

HOUR_ROWS: Final = 12
STEP_MINUTES: Final = 5
FIRST_MINUTE: Final = 3 * 1440
"""Minute of the week at the first row of the speeds: Thursday 1 March 2012, 0:00; Monday is 0."""
WEEK_MINUTES: Final = 7 * 1440
PLATE_FIELD: Final = 5

Request = dict[str, Array]


class Photo(NamedTuple):
    """A photo of a car and what is known of it."""

    path: Path
    box: tuple[int, int, int, int]
    """Of its plate: left, top, width and height in pixels."""
    plate: str
    """As a person wrote it down: capital letters and digits."""


def photos() -> list[Photo]:
    """Return the photos by name. Raises UserError when they are not there."""
    found = []
    for path in sorted(_there(PHOTOS).glob("*.jpg")):
        known = path.with_suffix(".txt").read_text(encoding="utf-8").split("\t")
        left, top, width, height = map(int, known[1:PLATE_FIELD])
        found.append(Photo(path, (left, top, width, height), known[PLATE_FIELD].strip()))
    return found


def plates_request(photo: Photo) -> Request:
    """Return the file of a photo."""
    return {"file": np.fromfile(photo.path, np.uint8)}


def speeds() -> Array:
    """Return all speeds, float32[row, detector] in mph, a row every five minutes; 0 is missing.

    Raises UserError when they are not there.
    """
    with _there(SPEEDS).open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return np.array([[float(one) for one in row] for row in rows], np.float32)


def minute_of_week(row: int) -> int:
    """Return when a row was measured; Monday 0:00 is 0."""
    return (FIRST_MINUTE + STEP_MINUTES * row) % WEEK_MINUTES


def traffic_request(table: Array, row: int) -> Request:
    """Return the hour that ends with a row of `speeds()`; row is 11 at least."""
    return {
        "speeds": np.ascontiguousarray(table[row - HOUR_ROWS + 1 : row + 1]),
        "minute": np.array([minute_of_week(row)], np.int32),
    }


def surround_request() -> Request:
    """Return the files of the four cameras, taken at one instant. Raises UserError."""
    return {side: np.fromfile(_there(CAMERAS / f"{side}.png"), np.uint8) for side in SIDES}


def _there(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path} is not there: this example reads real data that tona lacks")
    return path
