"""What the daemon hears: its own inboxes, and topics of services while a feed needs them."""

from types import SimpleNamespace
from typing import Any

import pytest

from device_agent.core.commands import Follow, Unfollow
from device_agent.daemon import Daemon
from device_agent.systemd import Notifier
from protocols.topics import Channel, Speaker
from protocols.transport.session import Session
from protocols.transport.settings import Settings

INPUT = "tona/1/+/service/s/input"


async def test_a_topic_that_no_feed_needs_is_unsubscribed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(host="127.0.0.1", port=1, identity="n", speaker=Speaker.NODE, cell="cell")
    prepared: Any = SimpleNamespace(
        restored=SimpleNamespace(place=None),
        incarnation=1,
        reserved=2,
        radios=2,
        switch="",
        radio="",
        attachment="",
        keeps_address=False,
    )
    core: Any = None
    journal: Any = None
    daemon = Daemon(core, prepared, settings, Notifier({}), journal)
    asked: list[list[str]] = []
    monkeypatch.setattr(Session, "resubscribe", lambda one: asked.append([*one._filters()]))
    daemon._do(Follow("s", Channel.INPUT))
    daemon._do(Unfollow("s", Channel.INPUT))
    first, second = asked
    assert INPUT in first
    assert second == [one for one in first if one != INPUT]
    assert second
