"""What `--broker` may say, and where each kind may listen."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.broker import mosquitto as mosquitto_module
from controller.broker.address import Address, is_loopback
from controller.broker.embedded import EmbeddedBroker
from controller.broker.mosquitto import MosquittoBroker, ServerTrust
from controller.broker.spec import make_broker, parse_url
from protocols.errors import UserError

HERE = Path("unused")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mqtt://127.0.0.1:1884", Address("127.0.0.1", 1884, tls=False)),
        ("mqtt://localhost", Address("localhost", 1883, tls=False)),
        ("mqtt://[::1]:7", Address("::1", 7, tls=False)),
        ("mqtts://broker.example:9", Address("broker.example", 9, tls=True)),
        ("mqtts://10.0.0.1/", Address("10.0.0.1", 8883, tls=True)),
    ],
)
def test_urls(spec: str, expected: Address) -> None:
    assert parse_url(spec) == expected
    assert parse_url(expected.url) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "mosquito",
        "http://x:1",
        "mqtt://",
        "mqtts://:1",
        "mqtts://h:0",
        "mqtts://h:99999",
        "mqtts://h:x",
        "mqtts://user:secret@h",
        "mqtts://h/path",
        "mqtts://h?x=1",
        "mqtts://[::1",
    ],
)
def test_what_is_no_broker(spec: str) -> None:
    with pytest.raises(UserError, match="names no broker: write embedded, mosquitto"):
        make_broker(spec, folder=HERE)


@given(st.text())
def test_any_text_is_a_broker_or_one_sentence(spec: str) -> None:
    with suppress(UserError):
        assert parse_url(spec).port > 0


def test_plain_text_stays_on_the_machine() -> None:
    with pytest.raises(UserError, match=r"in the clear: use mqtts://broker.example:1883"):
        parse_url("mqtt://broker.example:1883")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "gateway.local", ""])  # noqa: S104 - are only checked
def test_others_need_certificates(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UserError, match=r"this machine only.*tona ca init.*mosquitto"):
        make_broker("embedded", folder=HERE, host=host)
    with pytest.raises(UserError, match=r"needs certificates.*tona ca init"):
        make_broker("mosquitto", folder=HERE, host=host)


def test_embedded_with_an_authority_is_refused(trust: ServerTrust) -> None:
    with pytest.raises(UserError, match="verifies no certificates"):
        make_broker("embedded", folder=HERE, trust=trust)


def test_mosquitto_absent_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(mosquitto_module, "_SEARCHED", "/nowhere")
    with pytest.raises(UserError, match="not installed: run `sudo apt install mosquitto`"):
        make_broker("mosquitto", folder=HERE)


@pytest.mark.usefixtures("mosquitto")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    assert isinstance(make_broker("embedded", folder=HERE, host=host), EmbeddedBroker)
    assert isinstance(make_broker("mosquitto", folder=HERE, host=host), MosquittoBroker)
