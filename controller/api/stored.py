"""Arguments and results of the operations that move contents, and what is signed of them."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.base import Count, Name

MEDIAS: Final = ("wasm", "onnx", "container", "data")
MEDIA: Final = rf"^({'|'.join(MEDIAS)}|)$(?!\n)"

Sha256 = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{64}$(?!\n)", description="a SHA-256 of 64 lower-case hexadecimal digits"
    ),
]
MetadataName = Annotated[
    str,
    Meta(
        pattern=r"^([0-9]{1,9}\.)?[A-Za-z0-9][A-Za-z0-9._-]{0,63}\.json$(?!\n)",
        description="a metadata file of TUF, such as timestamp.json or 3.targets.json",
    ),
]


class Content(Struct, frozen=True, forbid_unknown_fields=True):
    """One content by its digest."""

    hex: Sha256


class HoldersOf(Content, frozen=True):
    """An artifact, and who asks for it."""

    but: str = ""
    """This node is left out."""


class PutArtifact(Struct, frozen=True, forbid_unknown_fields=True):
    """An artifact and what people call it."""

    hex: Sha256
    name: Annotated[
        str,
        Meta(
            pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,200}$(?!\n)",
            description="at most 200 characters without control characters",
        ),
    ] = ""
    media: Annotated[str, Meta(pattern=MEDIA, description=f"one of {', '.join(MEDIAS)}")] = ""


class Stored(Struct, frozen=True):
    """A content that the cell now keeps."""

    digest: str
    size_bytes: Count


class TrustFile(Struct, frozen=True, forbid_unknown_fields=True):
    """A metadata file by its name."""

    file: MetadataName


class PublishedBy(Struct, frozen=True, forbid_unknown_fields=True):
    """Who has signed."""

    publisher: Name
