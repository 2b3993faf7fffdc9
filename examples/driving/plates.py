"""How many number plates are read: all photos, from the full photo and from the true box.

python examples/driving/plates.py            the table
python examples/driving/plates.py --each     every photo that is not read to the letter
"""

import os
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from material import Photo, photos, plates_request
from reference import HERE, PLATES, PLATES_TINY, Array, Runner, load

STRIP_HEIGHT: Final = 48
STRIP_MIN_WIDTH: Final = 320
NO_FORMS: Final = np.zeros(0, np.uint8)


class Reading(NamedTuple):
    """What was read in one photo."""

    photo: Photo
    plate: str

    @property
    def errors(self) -> int:
        """Characters that differ from what a person read."""
        return distance(self.plate, self.photo.plate)


def distance(one: str, other: str) -> int:
    """Return how many characters have to be inserted, removed or replaced (Levenshtein)."""
    before = list(range(len(other) + 1))
    for at, character in enumerate(one, 1):
        row = [at]
        for there, wanted in enumerate(other, 1):
            cheapest = min(before[there], row[-1]) + 1
            row.append(min(cheapest, before[there - 1] + (character != wanted)))
        before = row
    return before[-1]


def from_photo(runner: Runner, photo: Photo) -> str:
    """Read a plate with the whole service."""
    return text_of(runner.run(plates_request(photo))["plate"])


def text_of(plate: Array) -> str:
    """Return a plate as the service gives it as text."""
    return plate.tobytes().decode("ascii")


def from_box(runner: Runner, photo: Photo, forms: Array) -> str:
    """Read a plate from where it is known to be: recogniser, text and rule alone."""
    image, _ = runner.step("decode", [plates_request(photo)["file"]])
    strip = cut(image, photo.box)
    (probabilities,) = runner.step("recognise", [strip])
    table = np.fromfile(HERE.parent / "reading" / "characters.txt", np.uint8)
    text, scores, index = runner.step("text", [probabilities, np.ones(1, np.int32), table])
    left, top, width, height = photo.box
    right, bottom = left + width, top + height
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    boxes = np.array([corners], np.float32)
    plate, _, _ = runner.step("plate", [text, scores, index, boxes, forms])
    return text_of(plate)


def cut(image: Array, box: tuple[int, int, int, int]) -> Array:
    """Cut a box out of uint8[h,w,3] and make it the recogniser's float32[1,3,48,-1], bilinear."""
    left, top, width, height = box
    pixels = image[max(top, 0) : top + height, max(left, 0) : left + width].astype(np.float32)
    height, width = pixels.shape[:2]
    wide = max(1, round(STRIP_HEIGHT * width / height))
    rows, columns = _taps(height, STRIP_HEIGHT), _taps(width, wide)
    mixed = _between(_between(pixels, rows).transpose(1, 0, 2), columns).transpose(1, 0, 2)
    strip = np.zeros((1, 3, STRIP_HEIGHT, max(wide, STRIP_MIN_WIDTH)), np.float32)
    strip[0, :, :, :wide] = (mixed[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)
    return strip


def _taps(source: int, target: int) -> Array:
    return np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)


def _between(pixels: Array, at: Array) -> Array:
    first = at.astype(int)
    second = np.minimum(first + 1, len(pixels) - 1)
    part = (at - first).astype(np.float32)[:, None, None]
    mixed: Array = pixels[first] * (1 - part) + pixels[second] * part
    return mixed


def without_forms() -> Runner:
    """Return the service as it is when no form of plate is known."""
    chain = load(PLATES)
    forms = next(spec for spec in chain.order.tasks if spec.step == "plate").manifest.constants[0]
    chain.files[forms.artifact.digest] = Path(os.devnull)
    return Runner(chain)


def told(name: str, readings: Iterable[Reading]) -> str:
    """Return a line of the table."""
    errors = [one.errors for one in readings]
    exact, near = errors.count(0), sum(one <= 1 for one in errors)
    return f"{name:<42} {exact:>5} {near:>12} {len(errors):>6}"


def table(every: list[Photo]) -> Iterator[tuple[str, list[Reading]]]:
    """Read all photos in every way, one way after another."""
    runner = Runner(load(PLATES))
    forms = np.fromfile(HERE / "tables" / "forms.txt", np.uint8)
    yield "full photo", [Reading(one, from_photo(runner, one)) for one in every]
    yield "true box", [Reading(one, from_box(runner, one, forms)) for one in every]
    plain = without_forms()
    yield "full photo, no form known", [Reading(one, from_photo(plain, one)) for one in every]
    yield "true box, no form known", [Reading(one, from_box(plain, one, NO_FORMS)) for one in every]
    if find_spec("tinyocr") is not None:
        tiny = Runner(load(PLATES_TINY, "tiny"))
        yield (
            "full photo, smaller recogniser",
            [Reading(one, from_photo(tiny, one)) for one in every],
        )


def main(arguments: list[str]) -> int:
    """Print the table."""
    if arguments not in ([], ["--each"]):
        print(__doc__, file=sys.stderr)
        return 2
    every = photos()
    print(f"{'read from':<42} exact  within one of all")
    for name, readings in table(every):
        print(told(name, readings))
        for one in readings if arguments else ():
            if one.errors:
                print(f"    {one.photo.path.name:<14} {one.photo.plate:<9} {one.plate}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
