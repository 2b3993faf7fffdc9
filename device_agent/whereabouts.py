"""Where the node is attached, in a file, for clients beside it (`tona.connect(follow=...)`).

The file is written anew as a whole each time, so that whoever reads it never sees a part.
"""

import logging
import os
from typing import Final

import msgspec

from protocols.transport.settings import Settings

MODE: Final = 0o644
"""Anybody on the machine may know; the broker asks for a certificate all the same."""

log = logging.getLogger("tona.node")


def note(path: str, serving: Settings, coming: Settings | None, *, alone: bool) -> None:
    """Write down the cell that serves, and the one whose attachment is made, if its link is up.

    `alone` says that what leads to the one is gone when the other is up.
    """
    said = {
        "node": serving.identity,
        **_point(serving),
        "next": None if coming is None else _point(coming),
        "alone": alone,
    }
    beside = f"{path}.new"
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, MODE), "wb") as file:  # noqa: PTH123 - pathlib has no mode
            file.write(msgspec.json.encode(said) + b"\n")
        os.replace(beside, path)  # noqa: PTH105 - without pathlib's import
    except OSError as error:
        log.warning("%s: cannot say where the node is attached: %s", path, error.strerror)


def _point(settings: Settings) -> dict[str, str]:
    scheme = "mqtts" if settings.tls else "mqtt"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return {"cell": settings.cell, "broker": f"{scheme}://{host}:{settings.port}"}
