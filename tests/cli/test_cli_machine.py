"""The commands that need no controller: profiles, authority, doctor, table of operations."""

import json
from pathlib import Path
from typing import Any

import pytest

from controller.api.operations import BY_NAME
from protocols.errors import EnvironmentFailure
from tona.cli import checks


def test_profiles_are_listed_shown_detected(tona: Any) -> None:
    names = [one["name"] for one in tona("profile", "list", "--json").json()]
    assert "jetson-orin" in names
    assert all(name in tona("profile", "list").out for name in names)
    assert tona("profile", "show", "rk3588", "--json").json()["accelerator"][0]["kind"] == "npu"
    assert "RKNPU2" in tona("profile", "show", "rk3588").out
    assert tona("profile", "detect", "--json").json()["profile"] in names
    assert tona("profile", "detect").code == 0


def test_a_wrong_profile_is_told_line_by_line(tona: Any, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('base = "raspberry-pi-5"\nname = "mine"\ntitle = "Mine"\n')
    bad.write_text('base = "raspberry-pi-5"\nname = "mine"\ntitel = "Mine"\n')
    assert tona("profile", "validate", good) == (0, f"{good}: valid\n", "")
    ended = tona("profile", "validate", good, bad)
    assert ended.code == 2
    assert f"{bad}:3: titel: there is no such field; did you mean title?" in ended.err
    told = tona("profile", "validate", bad, "--json")
    assert told.code == 2
    assert list(json.loads(told.out)) == [str(bad)]


def test_an_authority_issues_lists_and_revokes(tona: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "ca", tmp_path / "n1.bundle"
    here = ("--authority", folder)
    assert tona("ca", "init", *here, "--json").json()["folder"] == str(folder)
    assert tona("ca", "init", *here).code == 2
    issued = tona(
        "ca", "issue", "node-1", "--broker", "cell.example", "--out", out, *here, "--json"
    )
    assert issued.json()["broker"] == "mqtts://cell.example:8883"
    assert out.stat().st_mode & 0o777 == 0o600
    listed = tona("ca", "list", *here, "--json").json()
    assert [(one["name"], one["speaker"], one["revoked"]) for one in listed] == [
        ("node-1", "node", None)
    ]
    assert "in force" in tona("ca", "list", *here).out
    near = tona("ca", "revoke", "node-2", *here)
    assert (near.code, "did you mean node-1?" in near.err) == (2, True)
    assert tona("ca", "revoke", "node-1", *here).out == "node-1 is revoked\n"
    assert "revoked" in tona("ca", "list", *here).out
    nowhere = tmp_path / "no" / "n.bundle"
    assert tona("ca", "issue", "n3", "--broker", "x", "--out", nowhere, *here).code == 2
    assert len(tona("ca", "list", *here, "--json").json()) == 1


def test_the_doctor_names_what_is_missing_and_how_to_get_it(
    tona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TONA_API", "http://127.0.0.1:9")
    found = {one["what"]: one for one in tona("doctor", "--json").json()}
    assert found["wasm executor"]["state"] == "ok"
    assert "CPUExecutionProvider" in found["onnx executor"]["found"]
    assert found["controller"]["state"] == "absent"
    assert "tona up" in found["controller"]["hint"]
    assert all(one["hint"] for one in found.values() if one["state"] == "failed")
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    found = {one["what"]: one for one in tona("doctor", "--json").json()}
    assert found["wasm executor"] == {
        "what": "wasm executor",
        "state": "absent",
        "found": "wasmtime is not installed",
        "hint": "pip install 'tona-edge[wasm]': without it this machine runs no WebAssembly task",
    }
    assert "tona-edge[wasm]" in tona("doctor").out


def test_the_doctor_fails_where_nothing_can_work(
    tona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "OLDEST_PYTHON", (9, 9))
    ended = tona("doctor", "--json")
    assert ended.code == 3
    assert json.loads(ended.out)[0]["state"] == "failed"


def test_a_package_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks._import("json", "raise ValueError('broken')")[1].endswith("ValueError: broken")
    monkeypatch.setattr(checks, "PROBE_TIMEOUT_S", 0.0)
    assert "cannot be loaded" in checks._import("json", "import time; time.sleep(60)")[1]


def test_the_table_of_operations_is_listed(tona: Any) -> None:
    listed = tona("call", "--json").json()
    assert {one["name"] for one in listed} < set(BY_NAME)
    assert "usecase.submit" in tona("call").out


def test_the_failure_of_an_environment_is_an_absence() -> None:
    def fail() -> str:
        raise EnvironmentFailure("no controller answers at X (refused): start one with `tona up`")

    found = checks._attempt("controller", fail, "hint")
    assert (found.state, found.found) == ("absent", "no controller answers at X (refused)")
