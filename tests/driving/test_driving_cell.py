"""The three services on a real cell: what they answer is what the reference runner gives."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from material import DATA
from reference import PLATES, SURROUND, TRAFFIC, Runner
from steps import requests

import tona

pytestmark = [
    pytest.mark.xdist_group("driving-cell"),
    pytest.mark.timeout(300),
    pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real inputs in {DATA}"),
]

Runners = Callable[[Path], Runner]
SUBMIT_TIMEOUT_S = 120
SPARE_S = 60
"""In which the command itself says what stands in the way, after its own time."""
END_TIMEOUT_S = 60
DEADLINE_S = 60
ROUNDING = 1e-5
USE_CASES = (PLATES, TRAFFIC, SURROUND)


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `tona up` with two nodes and submit all three; gives the URL of its API."""
    data = tmp_path_factory.mktemp("cell")
    program, wait = [sys.executable, "-m", "tona"], ["--wait", f"--timeout={SUBMIT_TIMEOUT_S}"]
    up = [*program, "up", "--json", "--nodes=2", "--api-port=0", f"--data={data}"]
    with subprocess.Popen(up, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["api_url"]
            for use_case in USE_CASES:
                ended = subprocess.run(
                    [*program, "usecase", "submit", str(use_case), *wait],
                    env={**os.environ, "TONA_API": url},
                    capture_output=True,
                    text=True,
                    timeout=SUBMIT_TIMEOUT_S + SPARE_S,
                    check=False,
                )
                assert ended.returncode == 0, ended.stderr
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(END_TIMEOUT_S)


@pytest.mark.parametrize("use_case", USE_CASES, ids=lambda one: one.stem)
def test_the_service_answers_what_its_steps_give_in_one_process(
    cell: str, runner: Runners, use_case: Path
) -> None:
    request = requests()[use_case]
    wanted = runner(use_case).run(request)
    with tona.connect_blocking(cell) as client:
        outputs = client.invoke(use_case.stem, request, deadline_s=DEADLINE_S).outputs
    assert set(outputs) == set(wanted)
    for name, value in wanted.items():
        # Whichever form of a step runs: they differ in how the last digit is rounded.
        np.testing.assert_allclose(np.asarray(outputs[name]), value, ROUNDING, err_msg=name)


def test_a_picture_that_is_none_is_the_users_mistake(cell: str) -> None:
    with (
        tona.connect_blocking(cell) as client,
        pytest.raises(tona.InvocationError, match="the file is no JPEG, PNG"),
    ):
        client.invoke("plates", {"file": np.frombuffer(b"no picture", np.uint8)}, deadline_s=30)
