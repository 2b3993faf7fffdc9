"""How a command line ends: exit codes, one sentence, no traceback."""

import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from protocols.errors import EnvironmentFailure, PeerError, TonaBug, UserError
from tona.cli import app, errors, run
from tona.cli.errors import RefusedByController, exit_code
from tona.errors import bad_input

NOBODY = "http://127.0.0.1:9"
TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]


def python(program: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )


def test_the_version_is_the_distributions(tona: Any) -> None:
    ended = tona("--version")
    assert ended.code == 0
    assert ended.out.startswith("tona 0.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fleeet", "status"), "Did you mean 'fleet'? see `tona --help`"),
        (("fleet", "statis"), "Did you mean 'status'? see `tona fleet --help`"),
        (("job", "show"), "see `tona job show --help`"),
        (("fleet", "status", "--jsn"), "No such option: --jsn"),
        (("fleet", "status", "--state", "on"), "'on' is not one of"),
        (("demo", "--nodes", "1"), "Invalid value for '--nodes'"),
        (("task", "audit", "a.b", "--verdict", "shet"), "'shet' is none: one of ok, flagged, bad-"),
        (("profile", "show", "raspbery"), "did you mean 'raspberry-pi"),
        (("call", "fleet.stat"), "did you mean 'fleet.status'"),
        (("call", "fleet.status", "--arg", "stat=online"), "did you mean 'state'"),
        (("call", "artifact.get"), "it carries content, not JSON"),
        (("invoke", "reading", "--input", "file"), "write NAME=VALUE"),
        (("invoke", "reading", "--input", "x=json:[1,"), "--input x: no JSON"),
        (("invoke", "reading", "--input", "x=@/no/such"), "/no/such: cannot be read"),
        (("usecase", "submit", "/no/such.toml"), "/no/such.toml"),
        (("artifact", "push", "/no/such.wasm"), "/no/such.wasm: cannot be read"),
        (("ca", "list"), "make one with `tona ca init`"),
        (("--api", "ftp://x", "fleet", "status"), "write http://HOST:PORT"),
        (("--api", "https://x", "fleet", "status"), "name this client's with --bundle"),
        (("--config", "/no/such.toml", "fleet", "status"), "/no/such.toml: cannot read"),
        (("demo", "--images", "/no/such"), "--images /no/such"),
        (("up", "--broker", "mqtts://x"), "stays on loopback"),
        (("controller", "--api-port", "70000"), "--api-port: expected `int` <= 65535"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_code_2(
    tona: Any, arguments: tuple[str, ...], sentence: str
) -> None:
    ended = tona(*arguments)
    assert ended.code == errors.USAGE
    assert ended.out == ""
    assert sentence in ended.err
    assert ended.err.startswith("tona: ")
    assert ended.err.count("\n") == 1


def test_a_group_without_a_command_shows_its_help(tona: Any) -> None:
    ended = tona("fleet")
    assert ended.code == errors.USAGE
    assert "watch" in ended.out
    assert ended.err == "tona: a command is missing; see `tona fleet --help`\n"


def test_the_help_names_every_code_of_the_documentation(tona: Any) -> None:
    told = " ".join(tona("--help").out.split()).partition("Exit codes: ")[2]
    page = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()
    codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)
    assert codes == re.findall(r"(?:^|, )(\d+) ", told)


@pytest.mark.parametrize("place", ["before", "after", "environment"])
def test_no_controller_is_code_3_and_says_where_and_what_to_do(
    tona: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    arguments = {
        "before": ("--api", NOBODY, "fleet", "status"),
        "after": ("fleet", "status", f"--api={NOBODY}"),
        "environment": ("fleet", "status"),
    }[place]
    if place == "environment":
        monkeypatch.setenv("TONA_API", NOBODY)
    ended = tona(*arguments)
    assert ended.code == errors.UNAVAILABLE
    assert NOBODY in ended.err
    assert "`tona up`" in ended.err
    assert ended.err.count("\n") == 1


def test_global_options_may_stand_anywhere_but_behind_a_dash_dash() -> None:
    assert run.hoisted(["fleet", "status", "--api", "X", "--json"]) == [
        "--api", "X", "fleet", "status", "--json",
    ]  # fmt: skip
    assert run.hoisted(["task", "list", "--bundle=B"]) == ["--bundle=B", "task", "list"]
    assert run.hoisted(["task", "show", "--", "--api", "X"]) == [
        "task", "show", "--", "--api", "X",
    ]  # fmt: skip
    own = ["controller", "--bundle", "B"]
    assert run.hoisted(own) == own
    assert run.hoisted(["fleet", "--api"]) == ["fleet", "--api"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (EnvironmentFailure("x"), 3),
        (RefusedByController("x"), 4),
        (PeerError("x"), 4),
        (bad_input("x"), 4),
        (TonaBug("x"), 70),
    ],
)
def test_every_blame_has_its_code(error: Any, code: int) -> None:
    assert exit_code(error) == code


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next command raise."""

    def fail(error: BaseException) -> None:
        def work() -> None:
            raise error

        monkeypatch.setattr(app.app, "registered_commands", [])
        app.app.command("fails")(work)

    return fail


def test_a_fault_of_ours_is_one_line_and_code_70(tona: Any, failing: Any) -> None:
    failing(ZeroDivisionError("by zero"))
    ended = tona("fails")
    assert ended.code == errors.BUG
    assert ended.err.count("\n") == 1
    assert "ZeroDivisionError: by zero (cli/test_cli_run.py:" in ended.err
    assert "report it" in ended.err


def test_a_fault_shows_its_trace_to_whoever_asks(
    tona: Any, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ZeroDivisionError("by zero"))
    monkeypatch.setenv("TONA_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        tona("fails")


def test_ctrl_c_is_code_130_without_a_word(tona: Any, failing: Any) -> None:
    failing(KeyboardInterrupt())
    assert tona("fails") == (errors.INTERRUPTED, "", "")


def test_ctrl_c_at_a_running_controller_ends_it_in_order(tmp_path: Any) -> None:
    command = [sys.executable, "-m", "tona", "controller", "--json", "--api-port=0",
               "--broker-port=0", f"--data={tmp_path}"]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline().startswith('{"cell":"cell"')
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == errors.INTERRUPTED
    assert "Traceback" not in told


def test_a_service_manager_hears_that_the_controller_is_ready_and_when_it_ends(
    tmp_path: Any,
) -> None:
    command = [sys.executable, "-m", "tona", "controller", "--api-port=0", "--broker-port=0",
               f"--data={tmp_path / 'data'}"]  # fmt: skip
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(TIMEOUT_S)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert manager.recv(100) == b"READY=1"
            process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert process.wait(TIMEOUT_S) == 0


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "tona", "controller", f"--api-port={port}", "--broker-port=0",
             f"--data={tmp_path}"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
    assert ended.returncode in {errors.USAGE, errors.UNAVAILABLE}
    told = [line for line in ended.stderr.splitlines() if line.startswith("tona: ")]
    assert len(told) == 1
    assert str(port) in told[0]
    assert "Traceback" not in ended.stderr


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "tona", "profile", "list", "--json"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    finally:
        os.close(writer)
    assert (ended.stderr, ended.returncode) == ("", 0)


def test_without_its_packages_the_command_line_says_how_to_get_them() -> None:
    ended = python(
        "import sys; sys.modules['typer'] = None; sys.argv = ['tona', 'fleet', 'status']\n"
        "from tona.__main__ import main; sys.exit(main())"
    )
    assert ended.returncode == errors.USAGE
    assert "pip install 'tona-edge[cli]'" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [("profile list", 0), ("config show", 0), ("doctor", 0), ("ca list", 3), ("controller", 3)],
)
def test_only_what_needs_an_extra_asks_for_it(command: str, code: int) -> None:
    ended = python(
        "import sys\n"
        "for name in ('cryptography', 'iotcore', 'numpy', 'starlette', 'uvicorn'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['tona', *{command!r}.split()]\n"
        "from tona.__main__ import main; sys.exit(main())"
    )
    assert ended.returncode == code, ended.stderr
    if code:
        assert "pip install 'tona-edge[controller]'" in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_the_device_agent_starts_without_the_command_line() -> None:
    ended = python(
        "import os, sys; sys.argv = ['tona', 'agent', '--node', 'n1']\n"
        "def become(path, arguments): print(arguments[1:], [m for m in sys.modules if m.split('.')"
        "[0] in ('typer', 'rich', 'httpx', 'msgspec', 'controller')]); sys.exit()\n"
        "os.execv = become\n"
        "from tona.__main__ import main; main()"
    )
    assert ended.stdout == "['-P', '-m', 'device_agent', '--node', 'n1'] []\n", ended.stderr


def test_an_interrupt_while_it_imports_shows_no_trace() -> None:
    ended = python(
        "import os, signal, sys; sys.argv = ['tona', 'profile', 'list']\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tona.cli.run': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from tona.__main__ import main; sys.exit(main())"
    )
    assert (ended.returncode, ended.stderr) == (130, "")


def test_the_agents_own_help_is_reached() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tona", "--api", NOBODY, "agent", "--help"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 0
    assert ended.stdout.startswith("usage: tona agent [-h] ")


def test_there_is_no_colour_in_a_pipe_nor_with_no_color(
    tona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "\x1b" not in tona("doctor").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in tona("doctor").out


def test_the_shell_completes_commands() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tona"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env={**os.environ, "_TONA_COMPLETE": "complete_bash", "COMP_WORDS": "tona profile show ra",
             "COMP_CWORD": "3"},
    )  # fmt: skip
    assert ended.stdout.split() == ["raspberry-pi-4", "raspberry-pi-5"]


def test_a_package_of_the_controller_that_is_not_installed_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {re.split(r"[\[<>=]", one)[0] for one in extras["controller"] + extras["trust"]}
    assert wanted - {"tona-edge"} <= set(run.EXTRAS)
    error = ModuleNotFoundError("No module named 'tuf.api'", name="tuf.api")
    told, code, _ = run._verdict(error)
    assert told == "this needs the package tuf: pip install 'tona-edge[controller]'"
    assert code == errors.UNAVAILABLE
