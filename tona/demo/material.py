"""What the demonstration reads: the example beside the package, and images."""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, UserError

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pnm", ".pgm", ".ppm")
"""What the chain decodes."""
IMAGES_MAX: Final = 10_000
IMAGE_MAX_BYTES: Final = 64 << 20
NEEDED: Final = {
    "skimage": "scikit-image",
    "rapidocr_onnxruntime": "rapidocr-onnxruntime",
    "onnxruntime": "onnxruntime",
    "wasmtime": "wasmtime",
}
"""Modules whose files or programs the demonstration needs, and what installs them."""
PAGE: Final = "page.png"
TEXT: Final = "text.png"
PHRASES: Final = (
    "region-based segmentation",
    "let us first determine markers of the coins and the background",
    "these markers are pixels that we can label unambiguously as",
    "either object or background",
    "histogram of grey values",
)
"""What stands on the page, as far as the recogniser reads it whole."""
WORDS_KNOWN: Final = sum(len(phrase.split()) for phrase in PHRASES)


def use_case() -> Path:
    """Return the example's use case. Raises EnvironmentFailure: not installed from a clone."""
    path = Path(__file__).resolve().parents[2] / "examples" / "reading" / "usecase.toml"
    if not path.is_file():
        raise EnvironmentFailure(
            f"the demonstration runs examples/reading, and {path} is not there: "
            "clone the project and run `make demo` in it"
        )
    return path


def pictures() -> tuple[Path, Path]:
    """Return the scanned pages of scikit-image, which is located and not imported.

    Raises EnvironmentFailure when a package that the demonstration needs is not installed.
    """
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise EnvironmentFailure(
            f"the demonstration needs {', '.join(missing)}: run `make demo` in a clone of the "
            f"project, or pip install {' '.join(missing)}"
        )
    spec = find_spec("skimage")
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        data = Path(folder) / "data"
        if (data / PAGE).is_file() and (data / TEXT).is_file():
            return data / PAGE, data / TEXT
    raise EnvironmentFailure(f"scikit-image is installed without {PAGE}: pip install it again")


def images_in(folder: Path) -> list[Path]:
    """Return the images of a folder by name. Raises UserError."""
    try:
        found = sorted(one for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
    except OSError as error:
        raise UserError(f"--images {folder}: {error.strerror}") from None
    if not found:
        raise UserError(f"--images {folder}: no image in it ({', '.join(SUFFIXES)})")
    if len(found) > IMAGES_MAX:
        raise UserError(f"--images {folder}: {len(found)} images, at most {IMAGES_MAX} at once")
    return found


def read(image: Path) -> bytes:
    """Return an image file's content. Raises OSError."""
    with image.open("rb") as file:
        data = file.read(IMAGE_MAX_BYTES + 1)
    if len(data) > IMAGE_MAX_BYTES:
        raise OSError(f"larger than {IMAGE_MAX_BYTES >> 20} MiB")
    return data


def words_found(text: str) -> int:
    """Return how many of the page's known words stand in a text, by whole phrases.

    Blanks do not count: the recogniser leaves some out.
    """
    plain = "".join(text.lower().split())
    found = (phrase for phrase in PHRASES if "".join(phrase.split()) in plain)
    return sum(len(phrase.split()) for phrase in found)
