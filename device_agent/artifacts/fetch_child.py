"""Moves artifacts and blobs over HTTP, apart from the daemon; it leaves when the daemon hangs up.

    fetch_child.py SOCKET_FD PARENT_PID THREADS

Requests: `get` (unless `path` holds it already: resumes `part`, verifies, renames), `put`, `trust`.
Whichever thread is free reads the next one. A digest is held against the content before the content
gets its name; where a node asks for signatures, not a byte comes before its artifact is found
signed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import importlib
import json
import os
import shutil
import socket
import ssl
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Callable
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from _hashlib import HASH

    from device_agent.artifacts.warrant import Open, Warrants
    from device_agent.executors.programs.stream import Header, Refusal, Stream, die_with_parent
else:
    _HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[0] = os.path.join(_HERE, "..", "executors", "programs")
    sys.path.append(_HERE)
    from stream import Header, Refusal, Stream, die_with_parent

ATTEMPTS: Final = 4
"""Rounds over all addresses before a transfer is given up."""
BACKOFF_S: Final = 0.2
"""Before the second round; doubled for each one after it."""
SOCKET_TIMEOUT_S: Final = 10.0
SLOW_S: Final = 60.0
"""How long `SLOW_BYTES` of an artifact may take; a slower address is given up."""
SLOW_BYTES: Final = 64 * 1024
BLOCK_BYTES: Final = 256 * 1024
HOLDERS_MAX_BYTES: Final = 16 * 1024
NEIGHBOURS_MAX: Final = 4
"""That are tried before the store."""
FIXED_MODE: Final = 0o444
M_ARENA_MAX: Final = -8
"""Of glibc's mallopt."""
OK: Final = 200
PARTIAL: Final = 206
MULTIPLE: Final = 300
RANGE_NOT_SATISFIABLE: Final = 416
SERVER_ERROR: Final = 500

Connection = http.client.HTTPConnection


class Miss(Exception):
    """One address did not serve the request: why, and whether it may later."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


def failure(text: str, *, blame: str = "environment", retryable: bool = True) -> Refusal:
    """Make the answer to a transfer that failed."""
    return Refusal("fetch", blame, text, retryable=retryable)


class Client:
    """The connections of one thread, kept open between requests."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Connection] = {}

    def _connection(self, scheme: str, host: str, tls: list[str] | None) -> tuple[Connection, bool]:
        kept = self._open.get((scheme, host))
        if kept is not None:
            return kept, True
        if scheme == "https":
            context = ssl.create_default_context(cafile=tls[0] if tls else None)
            if tls:
                context.load_cert_chain(tls[1], tls[2])
            made: Connection = http.client.HTTPSConnection(
                host, timeout=SOCKET_TIMEOUT_S, context=context, blocksize=BLOCK_BYTES
            )
        elif scheme == "http":
            made = Connection(host, timeout=SOCKET_TIMEOUT_S, blocksize=BLOCK_BYTES)
        else:
            raise Miss(f"{scheme}: is no way to fetch", final=True)
        self._open[scheme, host] = made
        return made, False

    def ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        tls: list[str] | None,
        body: BinaryIO | None = None,
    ) -> tuple[http.client.HTTPResponse, Connection]:
        """Send one request; a kept connection that has gone stale is replaced once. Raises Miss."""
        while True:
            try:
                parts = urllib.parse.urlsplit(url)
                connection, kept = self._connection(parts.scheme, parts.netloc, tls)
            except (OSError, ValueError, http.client.InvalidURL) as error:
                raise Miss(f"{url}: {error}", final=True) from None
            try:
                if body is not None:
                    body.seek(0)
                target = f"{parts.path}?{parts.query}" if parts.query else parts.path
                connection.request(method, target, body, headers)
                return connection.getresponse(), connection
            except (OSError, ValueError, http.client.HTTPException) as error:
                self.forget(connection)
                if not kept:
                    raise Miss(f"{url}: {error or type(error).__name__}") from None

    def forget(self, connection: Connection) -> None:
        """Close a connection whose state is not known."""
        connection.close()
        self._open = {key: one for key, one in self._open.items() if one is not connection}


Work = Callable[[Header, str, Client], None]
"""Serve a request from one address. Raises Miss or Refusal."""


def over_addresses(request: Header, client: Client, work: Work) -> None:
    """Try the addresses in order, round after round, until one serves. Raises Refusal."""
    urls: list[str] = list(request["urls"])
    misses: dict[str, str] = {}
    for attempt in range(ATTEMPTS):
        if attempt and urls:
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
        for url in list(urls):
            try:
                work(request, url, client)
            except Miss as miss:
                misses[url] = str(miss)
                if miss.final:
                    urls.remove(url)
            else:
                return
    said = "; ".join(misses.values()) or "no address was given"
    raise failure(f"{request['op']} {request['hex'][:12]}: {said}")


def from_somebody(request: Header, client: Client) -> None:
    """Fetch from a neighbour that has it, else from a store. Raises Refusal."""
    for url in neighbours(request, client) if request["neighbours"] else ():
        # One try each: the store is sure to have it.
        with contextlib.suppress(Miss):
            get(request, url, client)
            return
    over_addresses(request, client, get)


def neighbours(request: Header, client: Client) -> list[str]:
    """Ask the stores which neighbours have an artifact; nobody, where none can say."""
    for url in request["urls"]:
        try:
            address = f"{url}/holders{request['neighbours']}"
            response, connection = client.ask("GET", address, {}, request["tls"])
            try:
                found = json.loads(response.read(HOLDERS_MAX_BYTES))
            finally:
                if not response.isclosed():
                    client.forget(connection)
        except (Miss, OSError, ValueError, RecursionError, http.client.HTTPException):
            continue
        if response.status == OK and isinstance(found, list):
            scheme = "https://" if request["tls"] else "http://"
            bases = [one for one in found if isinstance(one, str) and one.startswith(scheme)]
            del bases[NEIGHBOURS_MAX:]
            return [f"{base}/v1/artifacts/{request['hex']}" for base in bases]
    return []


def get(request: Header, url: str, client: Client) -> None:
    """Fetch from one address, on from where the part ends. Raises Miss or Refusal."""
    size: int = request["size"]
    try:
        with open(request["part"], "a+b", buffering=0) as part:
            have = part.tell()
            if have > size:
                part.truncate(0)
                have = 0
            # What comes is digested as it comes; only what lay here before is read again.
            found = digest_of(part)
            if have < size:
                found = download(part, found, have, request, url, client)
            if found.hexdigest() != request["hex"]:
                part.truncate(0)
                raise Miss("the content is not what its digest says")
            os.fsync(part.fileno())
        os.rename(request["part"], request["path"])
    except OSError as error:
        # A full disk: the part gives its room back, what lay there before stays.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(request["part"])
        raise failure(f"cannot store {request['hex'][:12]}: {error.strerror}") from None


def digest_of(part: FileIO) -> HASH:
    """Return the digest of what a part holds, to be gone on with."""
    part.seek(0)
    return hashlib.file_digest(part, "sha256")


def download(
    part: FileIO, found: HASH, have: int, request: Header, url: str, client: Client
) -> HASH:
    """Append what the part misses; the digest of all. Raises Miss, or OSError of the disk."""
    size: int = request["size"]
    headers = {"Range": f"bytes={have}-"} if have else {}
    response, connection = client.ask("GET", url, headers, request["tls"])
    whole = False
    try:
        if response.status == RANGE_NOT_SATISFIABLE:
            part.truncate(0)
            raise Miss(f"{url}: has no more than {have} bytes")
        if response.status not in (OK, PARTIAL):
            final = response.status < SERVER_ERROR
            raise Miss(f"{url}: {response.status} {response.reason}", final=final)
        starts = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status == PARTIAL and not starts:
            raise Miss(f"{url}: answered with another range", final=True)
        if response.status == OK:
            part.truncate(0)
            have, found = 0, hashlib.sha256()
        mark, since_s = have, time.monotonic()
        while have < size:
            block = read_block(response, url, min(BLOCK_BYTES, size - have))
            found.update(block)
            write_all(part, block)
            have += len(block)
            if have - mark >= SLOW_BYTES:
                mark, since_s = have, time.monotonic()
            elif time.monotonic() - since_s > SLOW_S:
                raise Miss(f"{url}: less than {SLOW_BYTES} bytes came in {SLOW_S:.0f} s")
        whole = not response.read(1)
        if not whole:
            part.truncate(0)
            raise Miss(f"{url}: sends more than the {size} bytes it should have", final=True)
    finally:
        if not whole:
            client.forget(connection)
    return found


def write_all(part: FileIO, block: bytes) -> None:
    """Write a block. Raises OSError."""
    left = memoryview(block)
    while left:
        left = left[part.write(left) :]


def read_block(response: http.client.HTTPResponse, url: str, size: int) -> bytes:
    """Read some bytes of a body; the network's errors become a Miss."""
    try:
        # What is there, not all of it: bytes that drip are to be seen.
        block = response.read1(size)
    except (OSError, http.client.HTTPException) as error:
        raise Miss(f"{url}: {error or type(error).__name__}") from None
    if not block:
        raise Miss(f"{url}: the answer ends too early")
    return block


def name(request: Header) -> str:
    """Give a value that an executor has made its digest, under which it lies from now on.

    Others rely on what lies there: it is the file itself where nobody can write to that any more,
    else a copy. Raises Refusal.
    """
    folder, source = request["folder"], request["path"]
    copy = f"{folder}/.part-{os.urandom(16).hex()}"
    try:
        try:
            if not fixed(source):
                shutil.copyfile(source, copy)
                source = copy
            with open(source, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            request["path"] = f"{folder}/{found}"
            with contextlib.suppress(FileExistsError):
                os.link(source, request["path"])
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
    except OSError as error:
        raise failure(f"cannot name a value: {error.strerror}") from None
    request["hex"] = found
    request["urls"] = [base + found for base in request["urls"]]
    return found


def fixed(path: str) -> bool:
    """Whether nobody writes to a file, nor will. Raises OSError when it is not there.

    Executors may neither change modes nor pass over them.
    """
    with open(path, "rb") as file:
        try:
            os.fchmod(file.fileno(), FIXED_MODE)
            # The kernel gives no such lease for what somebody has open to write.
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError:
            return False
    return True


def put(request: Header, url: str, client: Client) -> None:
    """Send a file to one address. Raises Miss or Refusal."""
    try:
        file = open(request["path"], "rb")  # noqa: SIM115 - closed by the with below
    except OSError as error:
        raise failure(f"cannot send {request['hex'][:12]}: {error.strerror}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        headers = {"Content-Length": str(size), "Content-Type": "application/octet-stream"}
        response, connection = client.ask("PUT", url, headers, request["tls"], file)
        try:
            response.read()
        except (OSError, http.client.HTTPException):
            client.forget(connection)
        if not OK <= response.status < MULTIPLE:
            final = response.status < SERVER_ERROR
            raise Miss(f"{url}: {response.status} {response.reason}", final=final)


def lies_here(request: Header) -> bool:
    """Whether the content is there already; what is not what its digest says goes."""
    try:
        with open(request["path"], "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == request["hex"]:
                return True
        os.unlink(request["path"])
    except OSError:
        return False
    return False


class Trust:
    """Who signed what, for the nodes that ask; TUF's client is loaded when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._warrants: Warrants | None = None

    def check(self, request: Header, client: Client, *, known: bool) -> None:
        """Hold an artifact against what is signed; `known`: it lay here before. Raises Refusal."""
        asked = request.get("trust")
        if not asked:
            return
        folder, target = asked["folder"], asked["target"]
        # As `warrant` keeps it: what lay here and was found signed needs nothing more.
        if known and os.path.exists(f"{folder}/verified/{target}"):
            return
        opened = over(client, request["tls"])
        self._loaded(folder).check(target, request["size"], asked["urls"], opened)

    def recheck(self, request: Header, client: Client) -> Header:
        """Bring what is trusted up to date. Raises Refusal."""
        asked = request["trust"]
        warrants = self._loaded(asked["folder"])
        return warrants.recheck(asked["urls"], over(client, request["tls"]))

    def _loaded(self, folder: str) -> Warrants:
        with self._lock:
            if self._warrants is None:
                try:
                    # A node on loopback goes without it.
                    made: Warrants = importlib.import_module("warrant").Warrants(folder)
                except ImportError as error:
                    raise failure(
                        f"this node cannot check who signed an artifact ({error}): "
                        "pip install 'tona-edge[trust]' there",
                        retryable=False,
                    ) from None
                self._warrants = made
            return self._warrants


def over(client: Client, tls: list[str] | None) -> Open:
    """Return how to read metadata over the connections of a thread."""

    def open_(url: str) -> tuple[http.client.HTTPResponse, Callable[[], None]]:
        try:
            response, connection = client.ask("GET", url, {}, tls)
        except Miss as miss:
            raise ConnectionError(str(miss)) from None
        return response, lambda: client.forget(connection)

    return open_


class Worker:
    """The threads of this process and what they share."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = Stream(sock)
        self._trust = Trust()
        self._reading = threading.Lock()
        self._writing = threading.Lock()

    def serve(self) -> None:
        """Serve requests until the daemon hangs up, then end the process."""
        try:
            client = Client()
            while True:
                with self._reading:
                    frame = self._stream.receive()
                if frame is None:
                    os._exit(0)
                answer = self._answer(frame[0], client)
                with self._writing:
                    self._stream.send(answer)
        except BaseException:  # noqa: BLE001 - a thread's edge: half a worker would hang requests
            traceback.print_exc()
            os._exit(os.EX_SOFTWARE)

    def _answer(self, request: Header, client: Client) -> Header:
        said: Header = {}
        try:
            if request["op"] == "get":
                here = lies_here(request)
                self._trust.check(request, client, known=here)
                if not here:
                    from_somebody(request, client)
            elif request["op"] == "put":
                if not request["hex"]:
                    said = {"digest": name(request)}
                over_addresses(request, client, put)
            else:
                said = self._trust.recheck(request, client)
        except Refusal as refusal:
            return {"id": request["id"], "fail": refusal.answer}
        return {"id": request["id"], **said}


def main(arguments: list[str]) -> int:
    """Serve with as many transfers at once as the daemon asked for."""
    die_with_parent(int(arguments[2]))
    # Blocks come and go: a heap for each thread would keep what each of them had at most.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    worker = Worker(socket.socket(fileno=int(arguments[1])))
    for _ in range(int(arguments[3]) - 1):
        threading.Thread(target=worker.serve, daemon=True).start()
    worker.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
