"""The demonstration and `tona up` as a person starts them: real processes, real kills."""

import json
import os
import select
import signal
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

TIMEOUT_S = 240
ENDED_WITHIN_MS = 30_000


def tona(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tona", *arguments]


def test_the_whole_loop_on_a_folder_of_images(tmp_path: Path) -> None:
    images, temporary = tmp_path / "images", tmp_path / "tmp"
    images.mkdir()
    temporary.mkdir()
    page = Path(distribution("scikit-image").locate_file("skimage/data/page.png"))
    (images / "a.png").write_bytes(page.read_bytes())
    (images / "broken.png").write_bytes(b"no image")
    ended = subprocess.run(
        tona("demo", "--json", "--images", str(images)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    summary = json.loads(ended.stdout)
    assert summary["ok"]
    first, second = summary["images"]
    assert first["text"].startswith("Region-based")
    assert "no JPEG, PNG" in second["error"]
    assert f"{images / 'broken.png'}: " in ended.stderr
    assert summary["images_read"] == 1
    assert summary["words_found"] == summary["words_known"]
    assert summary["sent"] == summary["answered"] > 0
    assert summary["failed"] == 0
    failover = summary["failover"]
    assert failover["tasks"]
    assert failover["first_answer_ms"] > 0
    assert failover["node"] not in {one["node"] for one in summary["placed_after"]}
    assert "lost" in ended.stderr
    assert "QUALITY" in ended.stderr
    assert list(temporary.glob("tona-demo-*")) == []


def test_a_demonstration_that_is_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(tona("demo"), **pipes, env=environment) as process:
        assert process.stdout is not None
        while "submitting" not in process.stdout.readline():
            assert process.poll() is None
        process.terminate()
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, told) == (143, "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_survives_the_supervisor_however_it_ends(tmp_path: Path) -> None:
    command = tona("up", "--json", "--nodes=2", "--api-port=0", f"--data={tmp_path}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["cell"] == "cell"
            family = {pid: os.pidfd_open(pid) for pid in descendants(process.pid)}
        finally:
            process.send_signal(signal.SIGKILL)
    # Controller, its broker and two device agents at least.
    assert len(family) >= 4
    try:
        for handle in family.values():
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            assert poll.poll(ENDED_WITHIN_MS)
    finally:
        for handle in family.values():
            os.close(handle)


def test_up_ends_in_order_at_ctrl_c_and_keeps_what_it_knows(tmp_path: Path) -> None:
    command = tona("up", "--nodes=1", "--api-port=0", f"--data={tmp_path}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("cell cell: API http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in told
    assert (tmp_path / "controller" / "store.sqlite").is_file()


def descendants(pid: int) -> list[int]:
    found = []
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for child in map(int, children.read_text().split()):
        found += [child, *descendants(child)]
    return found
