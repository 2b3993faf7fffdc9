"""Which struct stands behind each kind of record, and its bytes (MessagePack)."""

from typing import Final

import msgspec
from msgspec import Struct

from controller import accounts, handover_records, records
from protocols.errors import EnvironmentFailure, TonaBug

BODY_MAX_BYTES: Final = 4 << 20
"""A record is state, not content: whatever is larger belongs into the artifact store."""

TYPES: Final[dict[str, type[Struct]]] = {
    records.USE_CASE: records.UseCaseRecord,
    records.SERVICE: records.ServiceRecord,
    records.TASK: records.TaskRecord,
    records.NODE: records.NodeRecord,
    records.STORY: records.StoryRecord,
    records.ARTIFACT: records.ArtifactRecord,
    records.ANCHORED: records.AnchoredRecord,
    records.FIGURE: records.FigureRecord,
    records.APPROVAL: records.ApprovalRecord,
    records.JOB: records.JobRecord,
    records.HANDOVER: handover_records.HandoverRecord,
    records.CROSSING: handover_records.CrossingRecord,
    records.POINT: handover_records.PointRecord,
    records.GIVEN: records.GivenRecord,
    records.CHECKPOINT: records.CheckpointRecord,
    records.REACH: handover_records.ReachRecord,
    accounts.PROFILE: accounts.ProfileRecord,
    accounts.HEADS: accounts.HeadsRecord,
    accounts.OPERATION: accounts.OperationRecord,
}

_encoder = msgspec.msgpack.Encoder()
_decoders = {kind: msgspec.msgpack.Decoder(struct) for kind, struct in TYPES.items()}


def encode(kind: str, value: Struct) -> bytes:
    """Return the body of a record. Raises TonaBug for a kind or size that is not ours."""
    if not isinstance(value, TYPES.get(kind, ())):
        raise TonaBug(f"a record of kind {kind!r} cannot be a {type(value).__name__}")
    body = _encoder.encode(value)
    if len(body) > BODY_MAX_BYTES:
        raise TonaBug(f"a {kind} record of {len(body)} bytes, the bound is {BODY_MAX_BYTES}")
    return body


def decode(kind: str, key: str, body: bytes) -> Struct:
    """Return the struct of a body. Raises EnvironmentFailure when this version cannot read it."""
    decoder = _decoders.get(kind)
    if decoder is None:
        raise EnvironmentFailure(
            f"the store holds {kind} {key!r}, a kind this version does not know: "
            "start the version that wrote it"
        )
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EnvironmentFailure(
            f"the store holds {kind} {key!r} in a form this version cannot read ({error}): "
            "start the version that wrote it or restore a backup"
        ) from None
