"""Pure parts: restarts, configurations, the access list."""

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from controller.broker import embedded_conf, mosquitto_conf, restarts
from controller.broker.mosquitto_conf import Change, Files
from controller.broker.probe import connect_packet
from controller.trust.authority import Standing
from protocols import topics
from protocols.topics import TABLE, Speaker

FILES = Files.under(Path("/folder with space"))


def test_delays_grow_to_a_cap() -> None:
    assert restarts.delay_s(0, 0.9) == 0.0
    full = [restarts.delay_s(n, 1.0) for n in range(1, 12)]
    assert full[0] == restarts.BASE_S
    assert full[1] == 2 * full[0]
    assert full == sorted(full)
    assert full[-1] == restarts.CAP_S


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_are_bounded_and_spread_by_half(failures: int, chance: float) -> None:
    low, high = restarts.delay_s(failures, 0.0), restarts.delay_s(failures, 1.0)
    assert low <= restarts.delay_s(failures, chance) <= high <= restarts.CAP_S
    assert low == high / 2


def test_a_long_life_forgives_and_short_ones_add_up() -> None:
    failures = 0
    for _ in range(restarts.FAILURES_MAX):
        failures = restarts.failures_after(failures, 0.1)
    assert not restarts.given_up(failures)
    assert restarts.given_up(restarts.failures_after(failures, 0.1))
    assert restarts.failures_after(failures, restarts.STABLE_S) == 1


def test_the_embedded_configuration_holds_the_largest_message_and_bounds_each_log() -> None:
    config = tomllib.loads(embedded_conf.render("127.0.0.1", 1883))
    listener = config["v5"]["1"]
    assert listener["listen"] == "127.0.0.1:1883"
    largest = max(rule.max_bytes for rule in TABLE.values())
    assert listener["connections"]["max_payload_size"] >= max(256 * 1024, largest)
    logs = config["router"]["custom_segment"]
    assert len(logs) == len(TABLE)
    for log in logs.values():
        total = log["max_segment_size"] * log["max_segment_count"]
        assert total <= 16 * 1024 * 1024
    for (party, channel), rule in TABLE.items():
        log = logs[f"tona/1/+/{party}/+/{channel}"]
        assert log["max_segment_size"] * (log["max_segment_count"] - 1) >= 12 * rule.max_bytes


def test_an_ipv6_listener_is_bracketed() -> None:
    config = tomllib.loads(embedded_conf.render("::1", 7))
    assert config["v5"]["1"]["listen"] == "[::1]:7"


def test_mosquitto_on_loopback_lets_everyone_in() -> None:
    lines = mosquitto_conf.render("127.0.0.1", 1883, FILES, tls=False, user="me").splitlines()
    assert "listener 1883 127.0.0.1" in lines
    assert "allow_anonymous true" in lines
    assert "set_tcp_nodelay true" in lines
    assert "persistence false" in lines
    assert not any(line.startswith(("cafile", "acl_file", "keyfile")) for line in lines)


def test_mosquitto_with_certificates_lets_nobody_else_in() -> None:
    lines = mosquitto_conf.render("0.0.0.0", 8883, FILES, tls=True, user="me").splitlines()  # noqa: S104 - is only written
    for line in (
        "allow_anonymous false",
        "require_certificate true",
        "use_identity_as_username true",
        "crlfile /folder with space/crl.pem",
        "acl_file /folder with space/acl",
        "max_inflight_messages 1000",
        "max_queued_messages 100000",
        "set_tcp_nodelay true",
    ):
        assert line in lines


def matches(pattern: str, topic: str) -> bool:
    levels, names = pattern.split("/"), topic.split("/")
    return len(levels) == len(names) and all(
        level in {"+", name} for level, name in zip(levels, names, strict=True)
    )


def allowed(acl: str, user: str, access: str, topic: str) -> bool:
    """Mosquitto's reading of the file: lines belong to the user line above them."""
    current = ""
    for line in acl.splitlines():
        word, rest = line.split(" ", 1)
        if word == "user":
            current = rest
            continue
        assert word == "topic"
        kind, pattern = rest.split(" ", 1)
        if current == user and kind == access and matches(pattern, topic):
            return True
    return False


def test_the_access_list_says_what_the_table_says_and_no_more() -> None:
    identities = [
        ("n1", Speaker.NODE),
        ("n2", Speaker.NODE),
        ("c1", Speaker.CLIENT),
        ("gw", Speaker.CONTROLLER),
    ]
    acl = mosquitto_conf.render_acl(identities)
    assert "%u" not in acl
    assert "pattern" not in acl
    for user, speaker in identities:
        for (party, channel), rule in TABLE.items():
            for name in ("n1", "n2", "c1", "other"):
                topic = str(topics.build("cell", party, name, channel))
                own = party.value == speaker.value and name == user
                may_write = speaker in rule.publishers or (own and rule.owner_publishes)
                may_read = speaker in rule.subscribers or (own and rule.owner_subscribes)
                assert allowed(acl, user, "write", topic) == may_write, (user, topic)
                assert allowed(acl, user, "read", topic) == may_read, (user, topic)
    assert not allowed(acl, "stranger", "read", "tona/1/cell/node/n1/load")


def test_an_identity_more_is_a_reload_and_a_revocation_a_restart() -> None:
    old = Standing("ca", "crl", (("n1", Speaker.NODE),), frozenset())
    more = Standing("ca", "crl", (("n1", Speaker.NODE), ("n2", Speaker.NODE)), frozenset())
    revoked = Standing("ca", "crl 2", (("n1", Speaker.NODE),), frozenset({"2"}))
    relisted = Standing("ca", "crl 3", (("n1", Speaker.NODE),), frozenset({"2"}))
    assert mosquitto_conf.change(old, old) is Change.NOTHING
    assert mosquitto_conf.change(old, more) is Change.RELOAD
    assert mosquitto_conf.change(more, revoked) is Change.RESTART
    assert mosquitto_conf.change(revoked, relisted) is Change.RESTART


def test_the_probe_is_a_well_formed_connect() -> None:
    packet = connect_packet("probe-4194304-01234567")
    assert packet[0] == 0x10
    assert packet[1] == len(packet) - 2 < 128
    assert packet[2:9] == b"\x00\x04MQTT\x05"
