"""The bare examples where the broker asks for certificates: a name speaks for itself alone."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from examples_world import CLIENT, DEVICE, WAIT_S, Cell, Start

from controller.config import Config
from controller.gateway import Gateway
from controller.trust.authority import Authority
from protocols.messages.hierarchy import NodeState
from protocols.topics import Speaker
from protocols.transport.tls import Bundle, client_context, save

HERE = "127.0.0.1"
pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="Mosquitto is not installed: apt-get install mosquitto",
)


def issue(folder: Path, name: str, speaker: Speaker) -> Bundle:
    """Issue an identity and lay its parts out as the PEM files that the examples take."""
    authority = Authority.open(folder / "authority")
    addresses = [HERE] if speaker is Speaker.CONTROLLER else []
    bundle = authority.issue(name, speaker, "cell", broker_host=HERE, addresses=addresses)
    parts = {"ca": bundle.ca_pem, "certificate": bundle.certificate_pem, "key": bundle.key_pem}
    for part, pem in parts.items():
        (folder / f"{name}.{part}.pem").write_text(pem, encoding="ascii")
    return bundle


def as_(name: str) -> list[str]:
    return [
        word
        for part in ("ca", "certificate", "key")
        for word in (f"--{part}", f"{name}.{part}.pem")
    ]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Cell]:
    """A controller whose broker and API ask everyone for a certificate."""
    Authority.init(tmp_path / "authority", "fleet")
    own = issue(tmp_path, "gateway", Speaker.CONTROLLER)
    save(own, tmp_path / "gateway.json")
    for name, speaker in (("bare", Speaker.NODE), ("app", Speaker.CLIENT)):
        issue(tmp_path, name, speaker)
    gateway = Gateway(
        Config(
            data=str(tmp_path / "cell"),
            api_port=0,
            broker="mosquitto",
            broker_port=0,
            authority=str(tmp_path / "authority"),
            bundle=str(tmp_path / "gateway.json"),
        )
    )
    try:
        running = await gateway.start()
        context = client_context(issue(tmp_path, "operator", Speaker.CLIENT))
        async with httpx.AsyncClient(
            base_url=running.api_url, verify=context, timeout=WAIT_S
        ) as http:
            yield Cell(running, http)
    finally:
        await gateway.stop()


async def test_they_join_and_ask_over_tls_and_only_under_their_own_name(
    guarded: Cell, start: Start
) -> None:
    broker = ("--broker", guarded.broker)
    # Its words on the topics of another one never arrive: the broker holds them back.
    await start(DEVICE, "--node", "liar", "--state", "liar", *broker, *as_("bare"))
    await start(DEVICE, "--node", "bare", *broker, *as_("bare"))
    await guarded.until("fleet", "bare", lambda it: it.state is NodeState.ONLINE and it.load)
    asked = (CLIENT, "--client", "app", "--service", "nothing", *broker, *as_("app"))
    one = await start(*asked)
    assert await one.ends() == 1
    assert "no-service" in one.lines[-1], "the scheduler heard it and its answer came back"
    assert {node.node for node in await guarded.ask("fleet.status")} == {"bare"}
    stranger = await start(DEVICE, "--node", "bare", "--state", "stranger", *broker)
    await stranger.says("the connection is lost")
