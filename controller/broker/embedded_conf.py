"""The embedded broker's configuration, made from the table of topics. Pure.

rumqttd keeps an append-only log in memory for each filter that anyone has subscribed to; a consumer
that falls behind further than its log loses messages. So a log is as large as what arrives there: a
family that one controller reads for a whole cell gets a long one, the inbox of one node or client a
short one, of at least a dozen of its largest messages.
"""

from typing import Final

from protocols import topics

PACKET_MAX_BYTES: Final = 512 * 1024
"""Above the largest message of the table with its properties; a larger one ends the connection."""
CONNECTIONS_MAX: Final = 10_010
INFLIGHT_MAX: Final = 1000
CONNECT_TIMEOUT_MS: Final = 10_000

_SEGMENTS: Final = 4
_SEGMENT_MIN_BYTES: Final = 16 * 1024
_FAMILY_SEGMENT_BYTES: Final = 4 * 1024 * 1024
_MESSAGES_PER_SEGMENT: Final = 4
_ANY_CELL: Final = "+"


def render(host: str, port: int) -> str:
    """Return the TOML of a broker with one MQTT 5 listener on `host`:`port`."""
    listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    logs = "".join(
        f'[router.custom_segment."{name}"]\n'
        f"max_segment_size = {size_bytes}\nmax_segment_count = {_SEGMENTS}\n"
        for name, size_bytes in segment_bytes().items()
    )
    return f"""id = 0
[router]
id = 0
max_connections = {CONNECTIONS_MAX}
max_outgoing_packet_count = 200
max_segment_size = {_MESSAGES_PER_SEGMENT * topics.CONTROL_MAX_BYTES}
max_segment_count = {_SEGMENTS}
{logs}[v5.1]
name = "cell"
listen = "{listen}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = {CONNECT_TIMEOUT_MS}
max_payload_size = {PACKET_MAX_BYTES}
max_inflight_count = {INFLIGHT_MAX}
dynamic_filters = true
"""


def segment_bytes() -> dict[str, int]:
    """Return the segment size of each family's log, by filter."""
    sizes: dict[str, int] = {}
    for (party, channel), rule in topics.TABLE.items():
        if topics.Speaker.CONTROLLER in rule.subscribers:
            size = _FAMILY_SEGMENT_BYTES
        else:
            size = max(_SEGMENT_MIN_BYTES, _MESSAGES_PER_SEGMENT * rule.max_bytes)
        sizes[f"{topics.ROOT}/{_ANY_CELL}/{party.value}/+/{channel.value}"] = size
    return sizes
