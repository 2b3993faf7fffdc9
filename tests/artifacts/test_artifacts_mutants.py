"""Metadata that was tampered with anywhere is refused in words, and never by a crash."""

import importlib
import io
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from artifact_trust import TRUST, Cell

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = 100
"""Of each file."""
WEIRD = [None, True, -1, 0, 2**80, 1e308, "", "x" * 3000, [], {}, [[]], {"": None}, "../../x"]


@pytest.fixture
def warrant(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    # As the process imports it: with the executors' programs beside it.
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "device_agent/executors/programs"))
    yield importlib.import_module("device_agent.artifacts.warrant")
    for name in {"stream", "wire"} - before:
        sys.modules.pop(name, None)


class Answer:
    """What a response is to the reader of metadata."""

    def __init__(self, data: bytes | None) -> None:
        self.status, self.reason = (200, "OK") if data is not None else (404, "Not Found")
        self._data = io.BytesIO(data or b"")
        self.length = 0

    def read1(self, size: int) -> bytes:
        return self._data.read(size)

    def close(self) -> None:
        pass


def bent(value: Any, chance: random.Random) -> Any:
    """Return JSON with one place of it replaced."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        if chance.random() < 0.1:
            return {one: part for one, part in value.items() if one != key}
        return {**value, key: bent(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], bent(value[at], chance), *value[at + 1 :]]
    return chance.choice(WEIRD)


def mutant(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        at = chance.randrange(len(data))
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    return json.dumps(bent(json.loads(data), chance)).encode()


def verdict(warrant: Any, folder: Path, target: str, size: int, open_: Any) -> Any:
    """Return the refusal, None when the artifact was found signed."""
    try:
        warrant.Warrants(str(folder)).check(target, size, ["http://store"], open_)
    except warrant.Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "alice", "root"])
def test_no_mutant_of_signed_metadata_is_believed(
    cell: Cell, tmp_path: Path, warrant: Any, role: str
) -> None:
    ref = cell.sign(b"good")
    target = f"default/{ref.digest[7:]}"
    cell.repository.rotate("online")
    files = {one[len(TRUST) :]: data for one, data in cell.files().items()}
    names = [one for one in files if one in {f"{role}.json", f"2.{role}.json"}]
    names += [one for one in files if one.endswith(f".{role}.json")]
    name = max(names, key=lambda one: int(one.split(".")[0]) if one[0].isdigit() else 0)
    good, chance = files[name], random.Random(name)
    believed = 0
    for number in range(MUTANTS):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        (folder / "bootstrap.json").write_bytes(files["1.root.json"])
        shown = {**files, name: mutant(good, chance)}

        def open_(url: str, shown: dict[str, bytes] = shown) -> tuple[Answer, Callable[[], None]]:
            return Answer(shown.get(url.rpartition("/")[2])), lambda: None

        refusal = verdict(warrant, folder, target, ref.size_bytes, open_)
        if refusal is not None:
            assert refusal.answer[1] in {"peer", "environment", "user"}
            assert not (folder / "verified").exists()
        else:
            believed += 1
            same = json.loads(shown[name])["signed"] == json.loads(good)["signed"]
            assert same, shown[name]
    assert believed < MUTANTS // 4, "a change of what is not signed alone"
