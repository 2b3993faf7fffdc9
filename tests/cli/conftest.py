"""The command line in this process, and one real cell that the listings are asked of."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tona.cli import run as cli

START_TIMEOUT_S = 60
END_TIMEOUT_S = 100


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Tona = Callable[..., Ended]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the settings of whoever runs the tests out of them."""
    for name in [one for one in os.environ if one.startswith("TONA_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))


@pytest.fixture
def tona(capsys: pytest.CaptureFixture[str]) -> Tona:
    """Run one command line in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = cli.run([str(one) for one in arguments])
        told = capsys.readouterr()
        return Ended(code, told.out, told.err)

    return run


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run `tona up` with one node, as a person does; gives the URL of its API."""
    data = tmp_path_factory.mktemp("cell")
    command = [sys.executable, "-m", "tona", "up", "--json", "--api-port=0", f"--data={data}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["api_url"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(END_TIMEOUT_S)


@pytest.fixture(scope="session")
def reading() -> Path:
    return Path(__file__).resolve().parents[2] / "examples" / "reading"
