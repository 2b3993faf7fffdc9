"""The memory in which the runs of a model work, in a process that has loaded one.

Each test has a process of its own: the runtime has one arena for all sessions of a process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executor_room import EACH, ITEMS, TAKEN_BYTES, WEIGHTS

PROGRAM = Path(__file__).with_name("executor_room.py")
TIMEOUT_S = 120
SUMS = [ITEMS * EACH, EACH * WEIGHTS * (WEIGHTS - 1) / 2]


def apart(what: str) -> Any:
    """Do work in a process that ends with it."""
    command = [sys.executable, PROGRAM, what]
    done = subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
    return json.loads(done.stdout)


def test_what_a_run_took_is_given_back_at_once_and_weights_stay() -> None:
    sizes, sums = apart("given_back")
    for before, after in zip(sizes[::2], sizes[1::2], strict=True):
        assert before - after > TAKEN_BYTES * 3 // 4
    assert sums == [pytest.approx(SUMS)] * 3


def test_an_output_that_somebody_holds_stays() -> None:
    assert apart("kept_output")


def test_what_a_run_took_is_there_before_one_that_is_expected() -> None:
    (first, second), sums = apart("expected")
    assert second - first > TAKEN_BYTES * 3 // 4, "a first run takes nobody knows what"
    assert sums == pytest.approx(SUMS)


def test_weights_are_in_memory_for_a_run_that_was_told_of_and_stay_after_another() -> None:
    (there, gone, stay), sums = apart("weights")
    assert there, "before the run"
    assert gone, "after it, though it does not rest"
    assert stay, "nobody says when the next one comes"
    assert sums == [pytest.approx(SUMS)] * 2
