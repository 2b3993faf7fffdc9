"""Reads and checks the log of calls, in a process of its own that exits: `logread FOLDER QUERY`.

The query is the JSON of an `AuditQuery`'s fields; the answer, on stdout, MessagePack: the records
as `AuditPage` carries them, the number to read on before, and what is wrong with the log.
"""

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from device_agent.calllog import HEAD_BYTES, Batch, batches, segments
from protocols.messages.profile import PAGE_MAX_BYTES, AuditQuery

Record = tuple[Any, ...]
SLACK_BYTES: Final = 64


def check(folder: Path, known: dict[int, bytes]) -> tuple[list[Batch], str]:
    """Return the batches of a log, oldest first, and what is wrong with it; empty: it is whole.

    `known` are heads that were told elsewhere, by number of records. Raises OSError.
    """
    found: list[Batch] = []
    heads: dict[int, bytes] = {}
    wrong = ""
    before: bytes | None = None
    at = None
    for path in segments(folder):
        data = path.read_bytes()
        start = int(path.stem)
        if at is not None and (start != at or data[:HEAD_BYTES] != before):
            wrong = wrong or f"the segment from record {start} does not follow on the one before"
        heads[start] = data[:HEAD_BYTES]
        at, before = start, data[:HEAD_BYTES]
        end = HEAD_BYTES
        for one in batches(data):
            if one.head != one.chained or one.first != at:
                wrong = wrong or f"records {one.first} to {one.first + one.length - 1} were changed"
            at, before, end = one.first + one.length, one.chained, one.end
            heads[at] = one.chained
            found.append(one)
        if end < len(data):
            wrong = wrong or f"after record {at} stands what is no record"
    first = min(heads, default=0)
    for number, head in sorted(known.items()):
        if number > (at or 0):
            wrong = wrong or f"there were {number} records, there are {at or 0}"
        elif number >= first and heads.get(number) != head:
            wrong = wrong or f"records before {number} are not those that were logged"
    return found, wrong


def records(batch: Batch) -> Iterator[Record]:
    """Yield the records of a batch as they are read, newest first. Raises what is broken."""
    subjects, rows = msgspec.msgpack.decode(zlib.decompress(batch.packed))
    for at in range(len(rows) - 1, -1, -1):
        subject, at_ms, *rest = rows[at]
        told = (batch.first + at, at_ms + batch.offset_ms, *subjects[subject], *rest)
        yield told


def wanted(record: Record, query: AuditQuery) -> bool:
    """Whether a record is asked for."""
    number, unix_ms, task, verdict, user = (record[one] for one in (0, 1, 2, 11, 9))
    return (
        (not query.before or number < query.before)
        and unix_ms >= query.since_unix_ms
        and query.task in ("", task)
        and query.verdict in ("", verdict)
        and query.user in ("", user)
    )


def page(folder: Path, query: AuditQuery) -> tuple[bytes, int, str]:
    """Return the newest records that are asked for, where to read on, and what is wrong."""
    try:
        found, wrong = check(folder, {int(key): head for key, head in query.heads.items()})
    except OSError as error:
        return b"\x90", 0, f"the log cannot be read: {error.strerror}"
    kept: list[bytes] = []
    size = SLACK_BYTES
    for batch in reversed(found):
        try:
            for record in records(batch):
                if not wanted(record, query):
                    continue
                body = msgspec.msgpack.encode(record)
                if len(kept) >= query.limit or size + len(body) > PAGE_MAX_BYTES:
                    return _listed(kept), record[0] + 1, wrong
                kept.append(body)
                size += len(body)
        except (zlib.error, msgspec.DecodeError, ValueError, TypeError, IndexError):
            wrong = wrong or f"records {batch.first} and after cannot be read"
    return _listed(kept), 0, wrong


def _listed(bodies: list[bytes]) -> bytes:
    return b"\xdc" + len(bodies).to_bytes(2) + b"".join(bodies)


def main(arguments: list[str]) -> int:
    """Answer the query on the command line."""
    folder, query = arguments
    # Keys of heads are numbers, and JSON carries bytes as text of base64.
    answer = page(Path(folder), msgspec.json.decode(query, type=AuditQuery))
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
