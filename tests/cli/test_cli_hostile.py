"""Wrong files, wrong addresses, full disks, and words that would move a terminal's cursor."""

import base64
import contextlib
import errno
import io
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from controller import config as controller_config
from device_agent import config as agent_config
from device_agent import preparation as agent
from protocols.errors import UserError
from protocols.manifest import Dtype
from protocols.transport import tls
from tona.cli import api, errors, run
from tona.cli.context import PlainConsole, table
from tona.cli.invoke import show_result
from tona.cli.plain import plain
from tona.values import Result, Tensor

NOBODY = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: write a use case into it"),
        (b" \n", "is empty: write a use case into it"),
        (b"\xff\xfe", "is no text"),
        (b"#" * (3 << 20), "is larger than"),
    ],
)
def test_a_file_that_is_no_use_case(
    tona: Any, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "usecase.toml"
    path.write_bytes(content)
    ended = tona("--api", NOBODY, "usecase", "submit", path)
    assert ended.code == errors.USAGE
    assert sentence in ended.err
    assert ended.err.count("\n") == 1


def test_a_device_has_no_end(tona: Any, tmp_path: Path) -> None:
    path = tmp_path / "usecase.json"
    path.write_text('{"artifact": "/dev/zero"}')
    for arguments in (("artifact", "push", "/dev/zero"), ("usecase", "submit", path)):
        ended = tona("--api", NOBODY, *arguments)
        assert ended.code == errors.USAGE
        assert "/dev/zero is no regular file" in ended.err
    assert "larger than" in tona("--api", NOBODY, "usecase", "submit", "/dev/zero").err


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999", "http://:1", "http://[::1", "http://h:x"]
)
def test_an_address_that_cannot_be(tona: Any, url: str) -> None:
    ended = tona("--api", url, "fleet", "status")
    assert ended.code == errors.USAGE
    assert "is no URL: write http://HOST:PORT" in ended.err


def test_an_empty_name_is_told_without_jargon(tona: Any) -> None:
    ended = tona("--api", NOBODY, "task", "show", "")
    assert (ended.code, ended.err) == (errors.USAGE, "tona: name: expected str of length >= 1\n")


class Full(io.StringIO):
    """An output whose disk has no room."""

    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_silence", lambda _stream: None)
    monkeypatch.setattr(sys, "stdout", Full())
    code = run.run(["config", "show", "--json"])
    monkeypatch.undo()
    assert code == errors.UNAVAILABLE


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"y": "/dev/full"}, "--output /dev/full: cannot be written: No space left on device"),
        ({"z": "/dev/null"}, "service s has no output 'z': it gives y"),
    ],
)
def test_an_answer_outlives_a_file_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    why: str,
) -> None:
    data = b"\x00\xff"
    result = Result({"y": Tensor(Dtype.UINT8, (2,), data)})
    with pytest.raises(UserError) as caught:
        show_result("s", result, files, as_json=False)
    assert str(caught.value) == f"{why}; the whole answer is on the standard output, as JSON"
    said = json.loads(capsys.readouterr().out)
    assert base64.b64decode(said["outputs"]["y"]["data_base64"]) == data
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UserError) as caught:
        show_result("s", result, files, as_json=False)
    assert str(caught.value) == why
    assert capsys.readouterr().out == "uint8 2\n"


def test_words_of_others_do_not_move_the_cursor(tona: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "a\x1b[2J\x9b2J\x07b"
    out = io.StringIO()
    made = table("NODE")
    made.add_row(evil)
    PlainConsole(file=out, markup=False).print(made, evil, Text(evil))
    assert out.getvalue().count("a\N{REPLACEMENT CHARACTER}[2J") == 3
    assert not {"\x1b", "\x9b", "\x07"} & set(out.getvalue())

    def fail(_arguments: Any) -> int:
        raise UserError(evil)

    monkeypatch.setattr(run, "_invoke", fail)
    assert tona("x").err == f"tona: {plain(evil)}\n"
    assert plain("two\nlines\tand a tab, ünïcode") == "two\nlines\tand a tab, ünïcode"


def test_what_answers_without_end_is_no_controller(
    tona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "ANSWER_MAX_BYTES", 100_000)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def chatter() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    peer.sendall(bytes(1000))

        thread = threading.Thread(target=chatter, daemon=True)
        thread.start()
        ended = tona("--api", f"http://127.0.0.1:{listener.getsockname()[1]}", "fleet", "status")
        thread.join(30)
    assert ended.code == errors.REFUSED
    assert ended.err.endswith("is no controller: no end came\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ca", "issue", "x", "--broker", "h:99999"), "write HOST or HOST:PORT"),
        (("ca", "issue", "x", "--broker", "h", "--api-url", "h:8600"), "is no URL: write https://"),
        (("up", "--broker", "embeded"), "'embeded' names no broker"),
        (("demo", "--broker", "embeded"), "'embeded' names no broker"),
        (("up", "--cell", "a/b"), "--cell 'a/b': use letters"),
        (("sim", "compare", "absent"), "absent: cannot be read: No such file or directory"),
        (("sim", "capacity", "--cpu-percent", "-1"), "Invalid value for '--cpu-percent'"),
        (("sim", "mobility", "--traces", "absent"), "absent: there is no such folder"),
        (("invoke", "s", "--input", "a=1", "--input", "a=2"), "--input a is given 2 times"),
        (("invoke", "s", "--output", "a=absent/x"), "--output absent/x: cannot be written"),
        (("invoke", "s", "--output", "a=."), "--output .: cannot be written: it is a folder"),
    ],
)
def test_a_mistake_is_told_before_anything_begins(
    tona: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = tona("--api", NOBODY, *arguments)
    assert ended.code == errors.USAGE, ended
    assert sentence in ended.err
    assert ended.err.startswith("tona: ")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_agents_options_is_one_sentence(tmp_path: Path) -> None:
    for wrong, sentence in (
        (["--nod", "x"], "there is no option '--nod'; did you mean '--node'?"),
        (["extra"], "'extra' belongs to no option; see `tona agent --help`"),
        (["--node"], "argument --node: expected one argument; see `tona agent --help`"),
    ):
        with pytest.raises(UserError) as caught:
            agent_config.read(wrong, {})
        assert str(caught.value) == sentence
    file = tmp_path / "agent.toml"
    file.write_text('brokr = "x"\n')
    with pytest.raises(UserError, match="there is no option 'brokr'; did you mean 'broker'"):
        agent_config.read(["--config", str(file)], {})


@pytest.mark.parametrize(
    ("text", "environment", "flags", "sentence"),
    [
        ('brokr = "x"', {}, {}, "FILE: there is no setting 'brokr'; did you mean 'broker'?"),
        ('cell = "a/b"', {}, {}, "FILE: cell: expected a name: letters, digits"),
        ("", {"TONA_API_PORT": "x"}, {}, "TONA_API_PORT: expected `int`, got `str`"),
        ("", {}, {"roles": "ta,fu"}, "--roles[1]: invalid enum value 'fu'; choose from namo, ta"),
        ('side = "x"', {}, {}, "FILE: side: invalid enum value 'x'; choose from core, radio"),
        ("[mobility]\nback_ms = true", {}, {}, "FILE: mobility.back_ms: expected `int`"),
        ("[mobility]\ndecides = 'x'", {}, {}, "FILE: mobility.decides: invalid enum value 'x'"),
    ],
)
def test_a_mistake_in_a_controllers_settings_is_told_with_its_place(
    tmp_path: Path, text: str, environment: dict[str, str], flags: dict[str, str], sentence: str
) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        controller_config.read(file, environment, flags)
    assert str(caught.value).startswith(sentence.replace("FILE", str(file)))


def _bundle(tona: Any, folder: Path, kind: str, authority: str = "authority") -> Path:
    where = ("--authority", folder / authority)
    if not where[1].exists():
        assert tona("ca", "init", *where).code == 0
    file: Path = folder / f"{authority}-{kind}.bundle"
    issue = ("ca", "issue", kind, "--kind", kind, "--broker", "127.0.0.1", "--out", file, *where)
    assert tona(*issue).code == 0
    return file


def test_a_client_is_no_node(tona: Any, tmp_path: Path) -> None:
    file = _bundle(tona, tmp_path, "client")
    with pytest.raises(UserError, match="is the bundle of a client: make a node's"):
        agent.Identity(agent_config.read(["--bundle", str(file)], {}))


@pytest.mark.parametrize("command", [("fleet", "status"), ("invoke", "count")])
def test_a_node_is_no_client(tona: Any, tmp_path: Path, command: tuple[str, ...]) -> None:
    file = _bundle(tona, tmp_path, "node")
    ended = tona("--bundle", file, *command)
    assert ended.code == errors.USAGE
    assert ended.err == (
        f"tona: {file} is the bundle of the node 'node', for its device agent: "
        "make a client's with `tona ca issue NAME --kind client`\n"
    )


def test_a_controller_is_of_its_authority(tona: Any, tmp_path: Path) -> None:
    _bundle(tona, tmp_path, "client", "theirs")
    ours = _bundle(tona, tmp_path, "controller")
    asked = ("--authority", tmp_path / "theirs", "--bundle", ours, "--data", tmp_path / "data")
    ended = tona("controller", *asked, "--api-port", 0, "--broker-port", 0)
    assert ended.code == errors.USAGE
    assert f"{ours} is not of the authority in {tmp_path / 'theirs'}" in ended.err


def test_a_controller_of_another_authority_is_not_called_absent(tona: Any, tmp_path: Path) -> None:
    theirs = tls.load(_bundle(tona, tmp_path, "controller", "theirs"))
    ours = _bundle(tona, tmp_path, "client")
    context = tls.server_context(theirs)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        port = listening.getsockname()[1]

        def answer() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as one:
                context.wrap_socket(one, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        ended = tona("--bundle", ours, "--api", f"https://127.0.0.1:{port}", "fleet", "status")
        thread.join()
    assert ended.code == errors.UNAVAILABLE
    assert "is not the controller of this bundle (self-signed certificate" in ended.err
    assert "tona up" not in ended.err


def test_a_sign_that_the_output_has_not_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    output = io.TextIOWrapper(written, encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", output)
    code = run.run(["--api", "http://\u2264\u00fc:1", "config", "show", "client"])
    monkeypatch.undo()
    output.flush()
    assert code == errors.OK
    assert "http://?ü:1" in written.getvalue().decode("latin-1")


@pytest.mark.parametrize(
    ("redirection", "arguments", "code", "told"),
    [
        (">&-", ("config", "show"), errors.OK, ""),
        ("2>/dev/full", ("config", "sho"), errors.USAGE, ""),
        ("", ("--api", NOBODY, "fleet", "show", b"\xff"), errors.USAGE, "not UTF-8"),
    ],
)
def test_a_closed_or_full_output_takes_nothing_from_the_code(
    redirection: str, arguments: tuple[str | bytes, ...], code: int, told: str
) -> None:
    shell = f'exec "$0" -m tona "$@" {redirection}'
    command = ["sh", "-c", shell, sys.executable, *arguments]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert ended.returncode == code
    assert told in ended.stderr.decode()
    assert b"fault" not in ended.stderr


def test_a_log_without_room_takes_nothing_from_the_agents_code() -> None:
    command = [sys.executable, "-m", "device_agent", "--bundle", "/absent"]
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, check=False, stderr=full, timeout=120)
    assert ended.returncode == errors.USAGE


def test_a_folder_without_rights_is_no_fault_of_ours(
    tona: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/x")

    monkeypatch.setattr(run, "_invoke", refuse)
    ended = tona("config", "show")
    assert (ended.code, ended.err) == (errors.UNAVAILABLE, "tona: /root/x: Permission denied\n")
