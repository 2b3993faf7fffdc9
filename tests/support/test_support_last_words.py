import os
from pathlib import Path

from last_words import FILES_MAX, LINES_MAX, sections


def test_the_end_of_each_log_is_told(tmp_path: Path) -> None:
    own, module, before = (tmp_path / name for name in ("own", "module", "before"))
    for folder in (own, module, before):
        folder.mkdir()
    (own / "node-1.log").write_text("".join(f"line {at}\n" for at in range(100)))
    (own / "fault.txt").write_bytes(b"Traceback \xff\n")
    (own / "empty.log").touch()
    (module / "controller.log").write_text("x" * 100_000)
    (before / "controller.log").write_text("of another test")
    for path in (*own.iterdir(), *before.iterdir()):
        os.utime(path, (1, 1))
    machine, *told = sections(tmp_path, own, 100.0)
    assert machine[1].startswith("load ")
    texts = {title.rpartition(" ")[2]: text for title, text in told}
    assert texts.keys() == {"own/node-1.log", "own/fault.txt", "module/controller.log"}
    assert texts["own/node-1.log"].splitlines() == [
        f"line {at}" for at in range(100 - LINES_MAX, 100)
    ]
    assert "Traceback" in texts["own/fault.txt"]
    assert len(texts["module/controller.log"]) < 1000


def test_no_more_logs_are_told_than_somebody_reads(tmp_path: Path) -> None:
    for at in range(FILES_MAX + 5):
        (tmp_path / f"{at}.log").write_text("said")
        os.utime(tmp_path / f"{at}.log", (at, at))
    told = sections(tmp_path, tmp_path, 100.0)
    assert [title for title, _ in told[1:]] == [
        f"last words in {at}.log" for at in range(5, FILES_MAX + 5)
    ]
