"""What every message and its parts share; it stands in `protocols.base`, below the messages."""

from protocols.base import (
    Count,
    Digest,
    Dimension,
    Id,
    Message,
    Name,
    Part,
    Percent,
    Shape,
    Text,
)

__all__ = [
    "Count",
    "Digest",
    "Dimension",
    "Id",
    "Message",
    "Name",
    "Part",
    "Percent",
    "Shape",
    "Text",
]
