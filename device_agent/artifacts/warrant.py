"""Whether an artifact may run here: TUF's client, in the process that downloads.

    FOLDER/            0700, durable: what was once seen is never taken back (rollback)
      bootstrap.json         the root from this node's bundle
      metadata/              what TUF's client trusts
      verified/TENANT/HEX    that this artifact was found signed: it starts without a network
      state.json             root's version and when the newest timestamp expires

What has a record starts offline and after everything has expired; whatever is new needs metadata
that is whole, newest and in date. `recheck` takes the record from what is signed no more.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
)
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

if TYPE_CHECKING:
    from device_agent.artifacts.http1 import Response
    from device_agent.executors.programs.stream import Header, Refusal
else:
    from stream import Header, Refusal

VIEW_S: Final = 10.0
"""How long a view of the repository serves further artifacts; what it lacks is looked up anew."""
METADATA_S: Final = 30.0
"""For one metadata file, however slowly it comes."""
BLOCK_BYTES: Final = 16 * 1024
CLOCK_BEHIND: Final = dt.timedelta(days=1)
"""A clock further behind than that is wrong: certificates too begin a day early."""
ISSUED: Final = "issued"
BOUNDS: Final = UpdaterConfig(
    max_root_rotations=64,
    max_delegations=40,
    root_max_length=64 * 1024,
    timestamp_max_length=16 * 1024,
    snapshot_max_length=1 << 20,
    targets_max_length=5_000_000,
    prefix_targets_with_hash=False,
)
_OK: Final = 200
_ABSENT: Final = 404

Open = Callable[[str], "tuple[Response, Callable[[], None]]"]
"""Ask for an address; returns the response and what gives its connection up. Raises OSError."""


class BoundedFetcher(FetcherInterface):
    """Metadata over the connections of this process, each file within a time."""

    def __init__(self, open_: Open, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._open = open_
        self._clock_s = clock_s

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            response, forget = self._open(url)
        except OSError as error:
            raise DownloadError(str(error)) from None
        if response.status != _OK:
            forget()
            raise DownloadHTTPError(f"{url}: {response.status} {response.reason}", response.status)
        return self._blocks(response, forget, url)

    def _blocks(self, response: Response, forget: Callable[[], None], url: str) -> Iterator[bytes]:
        end_s = self._clock_s() + METADATA_S
        whole = False
        try:
            while block := response.read1(BLOCK_BYTES):
                if self._clock_s() > end_s:
                    raise DownloadError(f"{url}: has not ended after {METADATA_S:.0f} s")
                yield block
            whole = True
        except (OSError, ValueError) as error:
            raise DownloadError(f"{url}: {error or type(error).__name__}") from None
        finally:
            if not whole:
                forget()


class Warrants:
    """What this node trusts; one for all threads of the process."""

    def __init__(
        self, folder: str, now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    ) -> None:
        self._folder = folder
        self._now = now
        self._lock = threading.Lock()
        self._view: Updater | None = None
        self._view_until_s = 0.0

    def check(self, target: str, size: int, urls: list[str], open_: Open) -> None:
        """Find an artifact signed by who may sign it, and record that. Raises Refusal."""
        with self._lock:
            found = None
            if self._view is not None and time.monotonic() < self._view_until_s:
                found = self._look(target, self._view)
            if found is None:
                found = self._look(target, self._refresh(urls, open_))
            tenant, _, hex_ = target.rpartition("/")
            if found is None:
                raise refused(
                    f"artifact {hex_[:12]} of tenant {tenant} is signed by nobody who may: sign it "
                    "with `tona artifact sign`",
                    blame="user",
                )
            if found.length != size or found.hashes != {"sha256": hex_}:
                raise refused(f"artifact {hex_[:12]} is signed with another size or hash")
            self._keep(target)

    def recheck(self, urls: list[str], open_: Open) -> Header:
        """Bring what is trusted up to date, and strike what is signed no more. Raises Refusal.

        Returns root's version, the expiry of the timestamp, and the targets that were struck.
        """
        with self._lock:
            view = self._refresh(urls, open_)
            struck = [one for one in self._records() if self._look(one, view) is None]
            for one in struck:
                with contextlib.suppress(OSError):
                    os.unlink(self._record(one))
            with open(self._path("state.json"), "rb") as file:
                state = json.load(file)
            return {"trust": [state["root"], state["expires"], struck]}

    # How it is done.

    def _look(self, target: str, view: Updater) -> Any:
        try:
            return view.get_targetinfo(target)
        except (DownloadError, RepositoryError, OSError) as error:
            self._view = None
            raise told(error, self._now()) from None

    def _refresh(self, urls: list[str], open_: Open) -> Updater:
        """Return a new view, from the first store whose metadata holds. Raises Refusal."""
        self._view = None
        try:
            with open(self._path("bootstrap.json"), "rb") as file:
                root = file.read()
        except OSError:
            raise refused(
                "this node's bundle carries no trust for artifacts: have it issued again with "
                "`tona ca issue`",
                blame="user",
            ) from None
        self._check_clock(root)
        folder = self._path("metadata")
        refusals: list[Refusal] = []
        for url in urls:
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
                fetcher = BoundedFetcher(open_)
                view = Updater(
                    folder, f"{url}/v1/trust/", fetcher=fetcher, config=BOUNDS, bootstrap=root
                )
                view.refresh()
                self._settle(folder)
            except (DownloadError, RepositoryError, OSError) as error:
                refusals.append(told(error, self._now(), url))
                continue
            self._view, self._view_until_s = view, time.monotonic() + VIEW_S
            return view
        if not refusals:
            raise refused("no store was named to ask who signed it", blame="environment")
        # A store that says what is wrong weighs more than one that says nothing.
        refusals.sort(key=lambda one: one.answer[1] == "environment")
        raise refusals[0]

    def _check_clock(self, root: bytes) -> None:
        """Raise Refusal where the clock is behind what was signed before."""
        dates = [issued(root)]
        with (
            contextlib.suppress(OSError),
            open(self._path("metadata/timestamp.json"), "rb") as file,
        ):
            dates.append(issued(file.read()))
        newest = max((one for one in dates if one is not None), default=None)
        now = self._now()
        if newest is not None and now < newest - CLOCK_BEHIND:
            raise refused(
                f"this node's clock says {now:%Y-%m-%d}, but what it trusts was signed on "
                f"{newest:%Y-%m-%d}: set its time",
                blame="environment",
            )

    def _settle(self, folder: str) -> None:
        """Make what was learnt durable, and say in what state that leaves us."""
        for name in ("root.json", "timestamp.json", "snapshot.json", "targets.json", ""):
            sync(os.path.join(folder, name))
        sync(os.path.join(folder, "root_history"))
        with open(os.path.join(folder, "root.json"), "rb") as file:
            root = json.load(file)["signed"]["version"]
        with open(os.path.join(folder, "timestamp.json"), "rb") as file:
            expires = dt.datetime.fromisoformat(json.load(file)["signed"]["expires"])
        self._write("state.json", {"root": root, "expires": int(expires.timestamp())})

    def _keep(self, target: str) -> None:
        try:
            os.makedirs(os.path.dirname(self._record(target)), mode=0o700, exist_ok=True)
            self._write(f"verified/{target}", {"at": int(self._now().timestamp())})
        except OSError as error:
            text = f"cannot record that {target} is signed: {error.strerror}"
            raise refused(text, blame="environment") from None

    def _records(self) -> list[str]:
        found = []
        for folder, _, names in os.walk(self._path("verified")):
            tenant = os.path.basename(folder)
            found += [f"{tenant}/{name}" for name in names if not name.startswith(".")]
        return found

    def _record(self, target: str) -> str:
        return self._path(f"verified/{target}")

    def _write(self, name: str, content: dict[str, int]) -> None:
        path = self._path(name)
        draft = f"{os.path.dirname(path)}/.{os.path.basename(path)}"
        with open(draft, "w", encoding="ascii") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
        sync(os.path.dirname(path))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def refused(text: str, *, blame: str = "peer") -> Refusal:
    """Make the answer to an artifact that may not run; what an author left out stays so."""
    return Refusal("fetch", blame, text, retryable=blame != "user")


_SAID: Final = (
    (DownloadLengthMismatchError, "is refused, it has no end"),
    (BadVersionNumberError, "is refused, it goes back behind what was seen"),
    (LengthOrHashMismatchError, "is refused, its parts do not belong together"),
    (RepositoryError, "is refused"),
)


def told(error: Exception, now: dt.datetime, url: str = "") -> Refusal:
    """Say what TUF's client found wrong, in one sentence, by blame."""
    source = f"the trust metadata of {url or 'the store'}"
    if isinstance(error, ExpiredMetadataError):
        text = (
            f"{source} is refused: {error}; either the store is held at an old state, or this "
            f"node's clock ({now:%Y-%m-%d %H:%M} UTC) is wrong"
        )
        return refused(text, blame="environment")
    for kind, said in _SAID:
        if isinstance(error, kind):
            return refused(f"{source} {said}: {error}")
    if isinstance(error, DownloadHTTPError) and error.status_code == _ABSENT:
        text = f"{url or 'the store'} has none: its controller needs --authority"
        return refused(f"nobody says who signed what ({text})", blame="environment")
    why = getattr(error, "strerror", None) or str(error)
    did = "had" if isinstance(error, DownloadError) else "kept"
    return refused(f"{source} cannot be {did}: {why}", blame="environment")


def issued(data: bytes) -> dt.datetime | None:
    """Return when metadata was signed, where it says so."""
    try:
        return dt.datetime.fromisoformat(json.loads(data)["signed"][ISSUED])
    except (ValueError, KeyError, TypeError):
        return None


def sync(path: str) -> None:
    """Bring a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
