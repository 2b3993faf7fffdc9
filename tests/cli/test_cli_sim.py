"""`tona sim`: schedules, replays and capacity as a person asks for them."""

from pathlib import Path
from typing import Any

import pytest

DECODING = """
name = "small"

[[services]]
name = "decoding"
kind = "data-processing"
outputs = {{ size = "decode.size" }}
[[services.tasks]]
name = "decode"
executor = "wasm"
artifact = "{reading}/modules/decode.wasm"
limits = {{ memory_bytes = 134217728 }}
[services.tasks.inputs]
file = {{ from = "request.file", dtype = "uint8", shape = [-1] }}
[services.tasks.outputs]
image = {{ dtype = "uint8", shape = [-1, -1, 3] }}
size = {{ dtype = "int32", shape = [2] }}
"""


def test_faults_are_counted_and_nothing_is_lost(tona: Any) -> None:
    told = tona("sim", "faults", "--schedules", 2, "--seed", 3, "--jobs", 1, "--json").json()
    assert told["schedules"] == 2
    assert told["tasks"] >= 400
    assert (told["lost"], told["doubled"], told["violations"]) == (0, 0, 0)
    assert told["faults"]
    assert told["seconds"] > 0


def test_a_schedule_is_replayed_and_told(tona: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    told = tona("sim", "replay", "--seed", 3, "--trace", trace, "--json").json()
    assert told["hash"] == told["again"]
    assert told["verdict"] == "kept"
    assert " fault " in trace.read_text()


def test_handovers_of_one_seed_are_told(tona: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    told = tona("sim", "handovers", "--handovers", 1, "--seed", 2, "--trace", trace, "--json")
    figures = told.json()
    assert figures["handovers"] >= 1
    assert (figures["broken"], figures["failures"]) == (0, [])
    assert " starts" in trace.read_text()


def test_capacity_is_a_table_and_a_plot(tona: Any, tmp_path: Path) -> None:
    plot = tmp_path / "day.svg"
    ended = tona("sim", "capacity", "--nodes", 20, "--hours", 1, "--plot", plot)
    assert ended.code == 0, ended.err
    assert "nodes needed" in ended.out
    assert plot.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run",), "say --from-live"),
        (("compare", "/no/such.json"), "/no/such.json: cannot be read"),
        (("compare", __file__), "no prediction of `tona sim run --save`"),
        (("capacity", "--trace", "/no/such.csv"), "/no/such.csv"),
        (("capacity", "--plot", "/no/such/x.svg"), "there is no folder /no/such"),
        (("replay", "--seed", "3", "--trace", "/no/such/t"), "there is no folder /no/such"),
        (("handovers", "--trace", "/no/such/t", "--handovers", "1"), "there is no folder"),
        (("handovers", "--trace", "trace.txt"), "say --handovers 50 or less"),
        (("run", "--from-live", "--api", "http://127.0.0.1:9"), "no controller answers"),
    ],
)
def test_a_wrong_use_is_one_sentence(tona: Any, arguments: tuple[str, ...], sentence: str) -> None:
    ended = tona("sim", *arguments)
    assert ended.code in (2, 3)
    assert sentence in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.timeout(180)
@pytest.mark.xdist_group("cli-cell")
def test_a_live_fleet_is_predicted_and_compared(
    tona: Any, cell: str, tmp_path: Path, reading: Path
) -> None:
    file, kept = tmp_path / "small.toml", tmp_path / "prediction.json"
    file.write_text(DECODING.format(reading=reading))
    assert tona("--api", cell, "usecase", "submit", file, "--wait", "--timeout", 60).code == 0
    told = tona("--api", cell, "sim", "run", "--from-live", "--save", kept, "--json").json()
    assert [one["node"] for one in told["snapshot"]["nodes"]] == ["node-1"]
    latency = told["latency"]["decoding"]
    assert latency["answered"] == latency["requests"] > 0
    assert latency["p50_ms"] <= latency["p99_ms"]
    assert told["losses"]["node-1"]["decoding.decode"].startswith("waits: ")
    rows = tona("--api", cell, "sim", "compare", kept, "--json").json()
    assert {
        "what": "decoding.decode: node",
        "predicted": "node-1",
        "measured": "node-1",
    }.items() <= {
        key: value for row in rows if row["what"].endswith("node") for key, value in row.items()
    }.items()
    assert "IF LOST" in tona("--api", cell, "sim", "run", "--from-live").out
