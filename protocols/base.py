"""What every message and its parts share: struct settings and bounded field types."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.topics import NAME_PATTERN

Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
"""A node, client, service, task, tenant or cell: one level of a topic."""

Label = Annotated[str, Meta(min_length=1, max_length=64)]
"""A name that is only compared, never made a level of a topic: a bound costs less than a pattern,
and a plan of six steps carries fifty of them.
"""

Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$(?!\n)")]
"""A SHA-256 content address."""

Text = Annotated[str, Meta(max_length=2048)]
"""A sentence for a person; longer ones are cut by whoever writes them."""

Id = Annotated[str, Meta(max_length=128)]
"""An identifier that we do not take apart."""

Count = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of things, bytes or milliseconds."""

EPOCH_LIMIT: Final = 2**52
"""No lease reaches it; a peer that claims a higher epoch is not believed."""

Percent = Annotated[float, Meta(ge=0, le=100)]

Dimension = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
"""An axis of a tensor; -1 is unknown until run time."""

Shape = Annotated[tuple[Dimension, ...], Meta(max_length=8)]


class Part(Struct, frozen=True, array_like=True, gc=False):
    """A piece of a message: an untagged array on the wire.

    Not followed by the garbage collector, like every message: none can hold itself, and to look
    through those of a large fleet stops a controller for a fifth of a second.
    """


class Message(Struct, frozen=True, array_like=True, gc=False):
    """A message: an array on the wire, its first element the tag."""
