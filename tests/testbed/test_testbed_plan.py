"""Addresses and words of the networks; who connects."""

import ipaddress
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.transport import packets
from tona.publishing import keys_folder, list_keys, new_key
from tona.testbed.bed import Standing
from tona.testbed.connecting import CONNECT_MAX_BYTES, NoConnect, client_id
from tona.testbed.plan import BACKHAUL, CELLS_MAX, CU, KEYS, NODES_MAX, OPERATOR_ADDRESS, Spec
from tona.testbed.proxy import node_of
from tona.testbed.visit import visit


def test_a_command_inside_speaks_and_signs_for_the_testbed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ran: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda _program, _words, own: ran.append(own))
    found = Standing(
        pid=1, mode="netns", spec=Spec(), folder=str(tmp_path), bundle="/operator.bundle"
    )
    visit(found, "", ["true"])
    [own] = ran
    assert own["TONA_BUNDLE"] == "/operator.bundle"
    monkeypatch.setenv("TONA_KEYS", own["TONA_KEYS"])
    made, _ = new_key(tmp_path / KEYS, "testbed")
    assert list_keys(keys_folder()) == [made]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, CELLS_MAX), st.integers(1, NODES_MAX))
def test_every_address_is_of_one_party(cells: int, nodes: int) -> None:
    spec = Spec(cells=cells, nodes=nodes)
    hosts = [spec.host(one) for one in spec.gateways]
    own = [spec.address(node, cell) for node in spec.node_names for cell in spec.cell_names]
    every = [*hosts, *own, OPERATOR_ADDRESS]
    assert len({ipaddress.ip_address(one) for one in every}) == len(every)
    assert all(len(one) < 16 for one in spec.spaces), "no interface has a longer name"
    assert set(spec.interfaces(dict.fromkeys(spec.spaces, "/x"))) == set(spec.spaces)


def test_the_words_of_a_small_testbed() -> None:
    spec = Spec(cells=2, nodes=1)
    words = spec.interfaces({one: f"/ns/{one}" for one in spec.spaces})
    assert "link add du-2 type veth peer name up0 netns /ns/du-2" in words[BACKHAUL]
    assert "route add 10.90.1.11/32 dev ue-1" in words["du-1"]
    assert "route add 10.90.2.0/24 via 10.90.0.3" in words["du-1"]
    assert not any("tuntap" in one for one in words[CU])
    assert "route add 10.90.2.1/32 dev du-2 src 10.90.2.11" in words["ue-1"]
    assert spec.shaping()["du-1"][0].startswith("qdisc add dev up0 root tbf rate 1000mbit")


def test_the_last_nodes_have_one_radio() -> None:
    spec = Spec(nodes=4, one_radio=2)
    assert [spec.radios(one) for one in spec.node_names] == [2, 2, 1, 1]


def test_who_keeps_an_address_has_one_link_and_every_gateway_knows_the_way() -> None:
    spec = Spec(cells=2, nodes=2, one_radio=1)
    assert [spec.keeps(one) for one in spec.node_names] == [False, True]
    words = spec.interfaces({one: f"/ns/{one}" for one in spec.spaces})
    assert "addr add 10.90.200.12/32 dev radio" in words["ue-2"]
    assert not any("unreachable" in one for one in words["ue-2"])
    for cell in spec.cell_names:
        assert "route add 10.90.200.12/32 dev ue-2" in words[cell]
    assert "route add 10.90.200.0/24 via 10.90.0.2" in words[CU]
    assert spec.preferred("ue-2", "du-1") == []
    assert not Spec(nodes=2, one_radio=1, keep_address=False).keeps("ue-2")


def test_a_client_id_is_read_from_the_first_packet() -> None:
    packet = packets.connect("ue-1-0a1b2c", 5, 100_000, ("tona/1/c/node/ue-1/presence", b"x", 1))
    for cut in range(len(packet)):
        assert client_id(packet[:cut]) is None
    assert client_id(packet + b"more") == "ue-1-0a1b2c"
    assert node_of("ue-1-0a1b2c") == "ue-1"


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n", b"\x10\x04abcd", b"\x10\xff\xff\xff\xff"])
def test_what_is_no_mqtt_is_refused(wrong: bytes) -> None:
    with pytest.raises((NoConnect, packets.MalformedPacket)):
        client_id(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    with suppress(NoConnect, packets.MalformedPacket):
        client_id(data)


def test_a_connect_that_never_ends_is_refused() -> None:
    head = b"\x10" + bytes([0xFF, 0x7F])
    with pytest.raises(NoConnect):
        client_id(head + bytes(CONNECT_MAX_BYTES))
