"""Real models that installed packages carry."""

from importlib.util import find_spec
from pathlib import Path


def in_package(package: str, inside: str) -> Path:
    """Return a file of an installed package; ends the benchmark with a sentence without it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"benchmark: the package {package} is not installed: pip install it")
    return Path(spec.submodule_search_locations[0], inside)
