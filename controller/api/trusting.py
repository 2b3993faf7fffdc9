"""The trust in artifacts over HTTP: metadata for nodes and authors, and what authors sign."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response

from controller.api.body import whole
from controller.api.errors import Refused
from controller.api.stored import PublishedBy, Stored, TrustFile
from controller.trust.publishers import METADATA_MAX_BYTES, TrustState
from protocols.errors import TonaError

if TYPE_CHECKING:
    from controller.trust.repository import Repository

RENEW_S: Final = 600.0

_log = logging.getLogger(__name__)


class Trusting:
    """Serves a repository; without an authority there is none, and nobody is asked to sign."""

    def __init__(self, open_: "Callable[[], Repository] | None") -> None:
        self._open = open_
        self._repository: Repository | None = None
        self.warnings: tuple[str, ...] = ()

    async def state(self) -> TrustState:
        """Return who may sign, and until when. Raises UserError."""
        if self._open is None:
            return TrustState(required=False)
        return await asyncio.to_thread(lambda: self._at_hand().state())

    async def get(self, file: TrustFile) -> Response:
        """Return a metadata file. Raises Refused (404)."""
        if self._open is None:
            raise Refused(404, "this controller has no authority, so nobody signs artifacts here")

        def read() -> bytes:
            return self._at_hand().file(file.file).read_bytes()

        try:
            data = await asyncio.to_thread(read)
        except FileNotFoundError:
            raise Refused(404, f"there is no {file.file}", "file") from None
        # Only the timestamp is ever written anew; what has a number stays as it is.
        kept = "no-cache" if file.file == "timestamp.json" else "private, max-age=86400"
        return Response(data, headers={"cache-control": kept}, media_type="application/json")

    async def sign(self, request: Request, by: PublishedBy) -> Stored:
        """Take in a publisher's metadata. Raises UserError, Refused."""
        if self._open is None:
            raise Refused(409, "this controller has no authority: nothing has to be signed here")
        data = await whole(request, METADATA_MAX_BYTES)
        await asyncio.to_thread(lambda: self._at_hand().publish(by.publisher, data))
        return Stored(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))

    async def renew_forever(self) -> None:
        """Sign anew what is to expire, until cancelled."""
        if self._open is None:
            return
        while True:
            try:
                warnings = await asyncio.to_thread(lambda: self._at_hand().renew())
            except TonaError as error:
                warnings = (f"the trust in artifacts cannot be renewed: {error}",)
            for one in set(warnings) - set(self.warnings):
                _log.warning("%s", one)
            self.warnings = warnings
            await asyncio.sleep(RENEW_S)

    def _at_hand(self) -> "Repository":
        if self._repository is None:
            assert self._open is not None  # noqa: S101 - every caller has looked
            self._repository = self._open()
        return self._repository
