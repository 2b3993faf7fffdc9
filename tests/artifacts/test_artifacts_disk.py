"""A node whose real disk runs full goes on with what it has, and says so."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNSHARE = shutil.which("unshare") or ""
ROOT = Path(__file__).resolve().parents[2]


def alone() -> list[str]:
    """Return what runs a command where it may mount: as root, or as root of a user namespace."""
    ways = [[UNSHARE, "--mount"], [UNSHARE, "--mount", "--user", "--map-root-user"]]
    probe = ["sh", "-c", "mount -t tmpfs none /mnt"]
    for way in ways if UNSHARE else []:
        if subprocess.run([*way, *probe], capture_output=True, check=False).returncode == 0:
            return way
    return []


def test_a_full_disk_leaves_the_old_version(tmp_path: Path) -> None:
    way = alone()
    if not way:
        pytest.skip("this machine lets nobody mount in a namespace of his own")
    done = subprocess.run(
        [*way, sys.executable, str(Path(__file__).with_name("disk_story.py")), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "what nobody uses made room for the new version",
        "the disk is full",
        "a full disk is told before a byte is fetched",
        "a disk that fills up meanwhile is told, and nothing half is left",
        "the old version is there",
        "with room again the new one comes",
    ]
