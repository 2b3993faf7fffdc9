"""The codec: golden bytes, round trips, an independent witness, and bad input by blame."""

import functools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols.codec import VERSION, Frame, check_sender, decode, decoder, encode
from protocols.errors import (
    ForeignSender,
    MalformedFrame,
    OversizedFrame,
    PeerError,
    TonaBug,
    UnknownVersion,
)
from protocols.messages import NODE, Body
from protocols.topics import CONTROL_MAX_BYTES, INVOCATION_MAX_BYTES, Channel, Party, build

GOLDEN = Path(__file__).with_name("golden.txt")
BODIES = sorted(get_args(Body), key=lambda kind: str(kind.__struct_config__.tag))


def example(kind: Any, *, full: bool) -> Any:
    """Make a value of a type without chance: every field set (full), or only the needed ones."""
    return _make(msgspec.inspect.type_info(kind), full=full)


def _make(info: Any, *, full: bool) -> Any:  # noqa: C901, PLR0911 - one arm for each type
    inspect = msgspec.inspect
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            values = {
                one.name: _make(one.type, full=full) for one in fields if full or one.required
            }
            return cls(**values)
        case inspect.UnionType(types=types):
            return _make(next(one for one in types if one != inspect.NoneType()), full=full)
        case inspect.EnumType(cls=cls):
            return next(iter(cls))
        case inspect.LiteralType(values=values):
            return values[0]
        case inspect.StrType(pattern=pattern):
            return "sha256:" + "ab" * 32 if pattern and "sha256" in pattern else "text"
        case inspect.IntType(ge=least):
            return max(7, least or 0) if (info.le is None or info.le >= 7) else info.le
        case inspect.FloatType(le=most):
            return min(12.5, most or 12.5)
        case inspect.BoolType():
            return True
        case inspect.BytesType():
            return b"\x00\xff"
        case inspect.VarTupleType(item_type=item):
            return (_make(item, full=full),)
        case inspect.DictType(value_type=value):
            return {"text": _make(value, full=full)} if full else {}
    raise AssertionError(f"no example for {info}")


def frame(body: Any) -> Frame:
    return Frame(VERSION, "pi-1", 3, 5, "default", "cause-1", body)


@functools.cache
def golden_frames() -> dict[str, Frame]:
    return {
        f"{kind.__struct_config__.tag}-{'full' if full else 'least'}": frame(
            example(kind, full=full)
        )
        for kind in BODIES
        for full in (True, False)
    }


def test_golden_bytes_hold_both_ways() -> None:
    """A change here breaks devices in the field: only appended fields with a default are right."""
    frames = golden_frames()
    lines = dict(line.split() for line in GOLDEN.read_text(encoding="ascii").splitlines())
    assert {name: encode(one, INVOCATION_MAX_BYTES).hex() for name, one in frames.items()} == lines
    for name, text in lines.items():
        assert decode(bytes.fromhex(text), INVOCATION_MAX_BYTES) == frames[name]


@pytest.mark.parametrize("name", sorted(golden_frames()))
def test_an_independent_decoder_reads_every_golden_frame(name: str) -> None:
    one = golden_frames()[name]
    version, sender, incarnation, number, tenant, cause, body = msgpack.unpackb(
        encode(one, INVOCATION_MAX_BYTES)
    )
    assert (version, sender, incarnation, number) == (1, "pi-1", 3, 5)
    assert (tenant, cause) == ("default", "cause-1")
    assert body[0] == type(one.body).__struct_config__.tag
    assert len(body) == 1 + len(msgspec.structs.fields(one.body))
    assert decode(msgpack.packb(msgpack.unpackb(encode(one, INVOCATION_MAX_BYTES))), 1 << 20) == one


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_message_survives_the_wire(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(BODIES))
    body = data.draw(_strategy(msgspec.inspect.type_info(kind)))
    one = frame(body)
    assert decode(encode(one, 1 << 24), 1 << 24) == one


def _strategy(info: Any) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911 - the same
    inspect = msgspec.inspect
    match info:
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{one.name: _strategy(one.type) for one in fields})
        case inspect.UnionType(types=types):
            return st.one_of([_strategy(one) for one in types])
        case inspect.NoneType():
            return st.none()
        case inspect.EnumType() | inspect.LiteralType():
            choices = info.values if isinstance(info, inspect.LiteralType) else info.cls
            return st.sampled_from(list(choices))
        case inspect.StrType(pattern=pattern, min_length=least, max_length=longest):
            if pattern:
                return st.from_regex(pattern.replace("$(?!\n)", r"\Z"), fullmatch=False)
            return st.text(min_size=least or 0, max_size=min(longest or 40, 40))
        case inspect.IntType(ge=least, le=most):
            return st.integers(
                -(2**63) if least is None else least, 2**63 if most is None else most
            )
        case inspect.FloatType(ge=least, gt=above, le=most):
            return st.floats(
                least if least is not None else above,
                most,
                exclude_min=above is not None,
                allow_nan=False,
                allow_infinity=False,
            )
        case inspect.BoolType():
            return st.booleans()
        case inspect.BytesType(max_length=longest):
            return st.binary(max_size=min(longest or 40, 40))
        case inspect.VarTupleType(item_type=item, min_length=least):
            return st.lists(_strategy(item), min_size=least or 0, max_size=2).map(tuple)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_strategy(key), _strategy(value), max_size=2)
    raise AssertionError(f"no strategy for {info}")


@pytest.mark.parametrize("name", sorted(golden_frames()))
def test_every_truncation_is_malformed(name: str) -> None:
    payload = encode(golden_frames()[name], INVOCATION_MAX_BYTES)
    for length in range(len(payload)):
        with pytest.raises(MalformedFrame):
            decode(payload[:length], INVOCATION_MAX_BYTES)


def test_an_oversized_frame_is_not_even_looked_at() -> None:
    with pytest.raises(OversizedFrame, match="the bound is 64"):
        decode(b"\xc1" * 65, 64)


def test_another_version_is_told_apart_from_garbage() -> None:
    future = msgpack.packb([2, "pi-1", {"new": "layout"}])
    with pytest.raises(UnknownVersion, match="version 2, we speak 1"):
        decode(future, 1024)
    whole = msgspec.structs.replace(golden_frames()["load-full"], version=9)
    with pytest.raises(UnknownVersion):
        decode(msgspec.msgpack.encode(whole), 1 << 20)


@pytest.mark.parametrize(
    "payload",
    [
        [1, "pi-1", 3, 5, "default", "c", ["no-such-message", 1]],
        [1, "pi-1", 3, 5, "default", "c", ["load", "soon", 1.0]],
        [1, "pi-1", 3, 5, "default", "c", ["load", 1, 101.0]],
        [1, "pi-1", -3, 5, "default", "c", ["probe", 1]],
        [1, "../etc", 3, 5, "default", "c", ["probe", 1]],
        [1, "pi-1\n", 3, 5, "default", "c", ["probe", 1]],
        [1, "pi-1", 3, 5, "default", "c" * 129, ["probe", 1]],
        {"version": 1},
        "text",
        None,
    ],
)
def test_a_wrong_type_or_range_is_malformed(payload: Any) -> None:
    with pytest.raises(MalformedFrame):
        decode(msgpack.packb(payload), 1 << 20)


def test_appended_fields_are_accepted_both_ways() -> None:
    longer = msgpack.unpackb(encode(golden_frames()["probe-full"], 1 << 20))
    longer[6].append("a field of the future")
    longer.append("a header of the future")
    assert decode(msgpack.packb(longer), 1 << 20) == golden_frames()["probe-full"]
    shorter = msgpack.unpackb(encode(golden_frames()["death-least"], 1 << 20))
    shorter[6] = shorter[6][:2]
    assert decode(msgpack.packb(shorter), 1 << 20).body == example(
        type(golden_frames()["death-least"].body), full=False
    )


def test_a_foreign_sender_is_refused_where_the_owner_alone_speaks() -> None:
    one = golden_frames()["load-full"]
    check_sender(one, build("cell", Party.NODE, "pi-1", Channel.LOAD))
    with pytest.raises(ForeignSender, match="'pi-1' speaks on the topic of 'pi-2'"):
        check_sender(one, build("cell", Party.NODE, "pi-2", Channel.LOAD))
    check_sender(one, build("cell", Party.NODE, "pi-2", Channel.INVOKE))


def test_a_frame_of_ours_that_is_too_large_is_our_bug() -> None:
    with pytest.raises(TonaBug, match="exceeds its channel's 16"):
        encode(golden_frames()["load-full"], 16)


def test_ten_thousand_mutated_frames_raise_only_what_is_declared() -> None:
    dice = random.Random(1)
    payloads = [encode(one, INVOCATION_MAX_BYTES) for one in golden_frames().values()]
    refused = 0
    for _ in range(10_000):
        raw = bytearray(dice.choice(payloads))
        for _ in range(dice.randint(1, 8)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            decode(bytes(raw[: dice.randint(1, len(raw))]), CONTROL_MAX_BYTES)
        except PeerError:
            refused += 1
    assert refused > 5000


def test_who_says_what_it_hears_decodes_that_alone() -> None:
    hear = decoder(NODE)
    for name, frame in golden_frames().items():
        payload = encode(frame, INVOCATION_MAX_BYTES)
        if isinstance(frame.body, NODE):
            assert hear(payload, INVOCATION_MAX_BYTES) == frame
        else:
            with pytest.raises(MalformedFrame):
                hear(payload, INVOCATION_MAX_BYTES)
        assert decode(payload, INVOCATION_MAX_BYTES) == frame, name


def test_a_node_loads_no_message_of_the_roles() -> None:
    code = (
        "import sys, device_agent.daemon, device_agent.run; "
        "print(*(one for one in sys.modules if one.startswith('protocols.messages.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {one.rpartition(".")[2] for one in done.stdout.split()}
    assert "presence" in loaded
    assert not loaded & {"roles", "hierarchy", "host"}
