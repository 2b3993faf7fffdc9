"""Builds a machine's /proc and /sys from a text: one line a file, then what is different later."""

from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import Struct

TREES = Path(__file__).parent / "trees"


class Machine(Struct):
    """A tree of files, and how to make it a second older."""

    root: Path
    later: list[str]

    def age(self) -> None:
        for line in self.later:
            plant(self.root, line)

    def put(self, path: str, content: str) -> None:
        plant(self.root, f"{path}: {content}")

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()


def plant(root: Path, line: str) -> None:
    path, _, content = line.partition(": ")
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content.replace("\\n", "\n").replace("\\t", "\t").replace("\\0", "\0")
    file.write_text(text if text.endswith("\0") else f"{text}\n" if text else "")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], Machine]:
    def build(name: str) -> Machine:
        lines = (TREES / f"{name}.tree").read_text().splitlines()
        cut = next(at for at, line in enumerate(lines) if line.startswith("---"))
        for line in lines[:cut]:
            if not line.startswith("#"):
                plant(tmp_path, line)
        return Machine(tmp_path, lines[cut + 1 :])

    return build
