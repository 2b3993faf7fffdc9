"""The table of topics: build and parse are inverses; ACLs come from the same table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import TonaBug, UnknownTopic
from protocols.topics import (
    NAME_PATTERN,
    TABLE,
    Channel,
    Party,
    Speaker,
    acl,
    build,
    parse,
    wildcard,
)

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)


@given(NAMES, st.sampled_from(sorted(TABLE)), NAMES)
def test_build_and_parse_are_inverse(cell: str, family: tuple[Party, Channel], name: str) -> None:
    topic = build(cell, family[0], name, family[1])
    assert parse(str(topic)) == topic


@given(st.text())
def test_parse_takes_anything_and_answers_clearly(text: str) -> None:
    try:
        topic = parse(text)
    except UnknownTopic:
        return
    assert str(topic) == text


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "-a", "a" * 65, "ä"])
def test_a_name_that_is_no_level_cannot_be_built(name: str) -> None:
    with pytest.raises(TonaBug):
        build("cell", Party.NODE, name, Channel.LOAD)


def test_only_families_of_the_table_exist() -> None:
    with pytest.raises(UnknownTopic):
        parse("tona/1/cell/client/c/load")
    with pytest.raises(TonaBug):
        wildcard("cell", Party.CLIENT, Channel.LOAD)


def test_a_node_may_speak_for_itself_alone() -> None:
    writes = {line.pattern for line in acl(Speaker.NODE) if line.access == "write"}
    reads = {line.pattern for line in acl(Speaker.NODE) if line.access == "read"}
    assert "tona/1/+/node/%u/presence" in writes
    assert "tona/1/+/node/%u/command" in reads
    shared = {"tona/1/+/service/+/input", "tona/1/+/service/+/output"}
    assert all("%u" in pattern for pattern in reads - shared)
    others = {pattern for pattern in writes if "%u" not in pattern}
    assert others == {
        "tona/1/+/node/+/invoke",
        "tona/1/+/client/+/reply",
        "tona/1/+/service/+/input",
        "tona/1/+/service/+/output",
    }


def test_a_client_cannot_command_nodes_or_read_others_answers() -> None:
    lines = acl(Speaker.CLIENT)
    assert ("write", "tona/1/+/node/+/command") not in lines
    assert ("read", "tona/1/+/client/%u/reply") in lines
    assert all(line.pattern != "tona/1/+/client/+/reply" for line in lines)


def test_only_the_controller_commands() -> None:
    for speaker in Speaker:
        commands = ("write", "tona/1/+/node/+/command") in acl(speaker)
        assert commands == (speaker is Speaker.CONTROLLER)
