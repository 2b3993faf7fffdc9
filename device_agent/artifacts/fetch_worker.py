"""What the transfer process does with a request of the daemon.

`get` (unless `path` holds it already: resumes `part`, verifies, renames), `put`, `trust`. Whichever
thread is free reads the next one. A digest is held against the content before the content gets its
name; where a node asks for signatures, not a byte comes before its artifact is found signed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from io import FileIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _hashlib import HASH
    from io import BufferedReader
    from ssl import SSLContext

    from device_agent.artifacts.http1 import Address, Connection, HttpError, Response
    from device_agent.artifacts.warrant import Open, Warrants
    from device_agent.executors.programs.stream import (
        Header,
        Refusal,
        Stream,
        to_the_end,
    )
else:
    from http1 import Address, Connection, HttpError, Response
    from stream import Header, Refusal, Stream, to_the_end

ATTEMPTS: Final = 4
"""Rounds over all addresses before a transfer is given up."""
BACKOFF_S: Final = 0.2
"""Before the second round; doubled for each one after it."""
SOCKET_TIMEOUT_S: Final = 10.0
SLOW_S: Final = 60.0
"""How long `SLOW_BYTES` of an artifact may take; a slower address is given up."""
SLOW_BYTES: Final = 64 * 1024
BLOCK_BYTES: Final = 128 * 1024
"""Moved at once, and digested while the processor's cache has it."""
HOLDERS_MAX_BYTES: Final = 16 * 1024
ANSWER_MAX_BYTES: Final = 16 * 1024
"""Of what is said to a body that was sent."""
NEIGHBOURS_MAX: Final = 4
"""That are tried before the store."""
FIXED_MODE: Final = 0o444
OK: Final = 200
PARTIAL: Final = 206
MULTIPLE: Final = 300
RANGE_NOT_SATISFIABLE: Final = 416
SERVER_ERROR: Final = 500


class Miss(Exception):
    """One address did not serve the request: why, and whether it may later."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final


def failure(text: str, *, blame: str = "environment", retryable: bool = True) -> Refusal:
    """Make the answer to a transfer that failed."""
    return Refusal("fetch", blame, text, retryable=retryable)


class Client:
    """What one thread keeps between requests: its connections, and a buffer."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Connection] = {}
        self.buffer = memoryview(bytearray(BLOCK_BYTES))

    def _connection(self, address: Address, tls: list[str] | None) -> tuple[Connection, bool]:
        kept = self._open.get((address.scheme, address.netloc))
        if kept is not None:
            if kept.free:
                return kept, True
            self.forget(kept)
        context = secure(tls) if address.scheme == "https" else None
        made = Connection(address, SOCKET_TIMEOUT_S, context)
        self._open[made.key] = made
        return made, False

    def ask(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        tls: list[str] | None,
        body: BufferedReader | None = None,
    ) -> tuple[Response, Connection]:
        """Send one request; a kept connection that has gone stale is replaced once. Raises Miss."""
        try:
            address = Address(url)
        except ValueError as error:
            raise Miss(f"{url}: {error}", final=True) from None
        while True:
            try:
                connection, kept = self._connection(address, tls)
            except OSError as error:
                raise Miss(f"{url}: {error or type(error).__name__}") from None
            try:
                if body is not None:
                    body.seek(0)
                return connection.ask(method, address.target, headers, body), connection
            except (OSError, HttpError) as error:
                self.forget(connection)
                if not kept:
                    raise Miss(f"{url}: {error or type(error).__name__}") from None

    def forget(self, connection: Connection) -> None:
        """Close a connection whose state is not known."""
        connection.close()
        self._open = {key: one for key, one in self._open.items() if one is not connection}


def secure(tls: list[str] | None) -> SSLContext:
    """Return how to reach whom we trust: by these files, else by what the system knows.

    Raises Miss.
    """
    import ssl  # noqa: PLC0415 - a node on loopback goes without it

    try:
        context = ssl.create_default_context(cafile=tls[0] if tls else None)
        if tls:
            context.load_cert_chain(tls[1], tls[2])
    except OSError as error:
        raise Miss(f"the files of TLS: {error}", final=True) from None
    return context


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
                if not connection.free:
                    client.forget(connection)
        except (Miss, OSError, ValueError, RecursionError):
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
            found = digest_of(part, client)
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


def digest_of(file: FileIO, client: Client) -> HASH:
    """Return the digest of what a file holds, to be gone on with. Raises OSError."""
    found = hashlib.sha256()
    file.seek(0)
    while size := file.readinto(client.buffer):
        found.update(client.buffer[:size])
    return found


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
        starts = response.headers.get("content-range", "").startswith(f"bytes {have}-")
        if response.status == PARTIAL and not starts:
            raise Miss(f"{url}: answered with another range", final=True)
        if response.status == OK:
            part.truncate(0)
            have, found = 0, hashlib.sha256()
        mark, since_s = have, time.monotonic()
        while have < size:
            block = read_block(response, url, client.buffer[: size - have])
            found.update(block)
            write_all(part, block)
            have += len(block)
            if have - mark >= SLOW_BYTES:
                mark, since_s = have, time.monotonic()
            elif time.monotonic() - since_s > SLOW_S:
                raise Miss(f"{url}: less than {SLOW_BYTES} bytes came in {SLOW_S:.0f} s")
        whole = ended(response, url)
        if not whole:
            part.truncate(0)
            raise Miss(f"{url}: sends more than the {size} bytes it should have", final=True)
    finally:
        if not whole:
            client.forget(connection)
    return found


def ended(response: Response, url: str) -> bool:
    """Whether a body has no more; what tells no length has to be asked. Raises Miss."""
    try:
        return response.length == 0 or (response.length is None and not response.read(1))
    except OSError as error:
        raise Miss(f"{url}: {error or type(error).__name__}") from None


def write_all(part: FileIO, block: memoryview) -> None:
    """Write a block. Raises OSError."""
    while block:
        block = block[part.write(block) :]


def read_block(response: Response, url: str, buffer: memoryview) -> memoryview:
    """Read some bytes of a body; the network's errors become a Miss."""
    try:
        # What is there, not all of it: bytes that drip are to be seen.
        size = response.read_into(buffer)
    except (OSError, HttpError) as error:
        raise Miss(f"{url}: {error or type(error).__name__}") from None
    if not size:
        raise Miss(f"{url}: the answer ends too early")
    return buffer[:size]


def name(request: Header, client: Client) -> str:
    """Give a value that an executor has made its digest, under which it lies from now on.

    Others rely on what lies there: it is the file itself where nobody can write to that any more,
    else a copy. Raises Refusal.
    """
    folder, source = request["folder"], request["path"]
    copy = f"{folder}/.part-{os.urandom(16).hex()}"
    try:
        try:
            if not fixed(source):
                copy_file(source, copy, client)
                source = copy
            with open(source, "rb", buffering=0) as file:
                found = digest_of(file, client).hexdigest()
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


def copy_file(source: str, target: str, client: Client) -> None:
    """Copy a file. Raises OSError."""
    with open(source, "rb", buffering=0) as file, open(target, "xb", buffering=0) as copy:
        while size := file.readinto(client.buffer):
            write_all(copy, client.buffer[:size])


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
        with contextlib.suppress(OSError, HttpError):
            response.read(ANSWER_MAX_BYTES)
        if not connection.free:
            client.forget(connection)
        if not OK <= response.status < MULTIPLE:
            final = response.status < SERVER_ERROR
            raise Miss(f"{url}: {response.status} {response.reason}", final=final)


def lies_here(request: Header, client: Client) -> bool:
    """Whether the content is there already; what is not what its digest says goes."""
    try:
        with open(request["path"], "rb", buffering=0) as file:
            if digest_of(file, client).hexdigest() == request["hex"]:
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

    def open_(url: str) -> tuple[Response, Callable[[], None]]:
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
        to_the_end(self._serve)

    def _serve(self) -> None:
        client = Client()
        while True:
            with self._reading:
                frame = self._stream.receive()
            if frame is None:
                os._exit(0)
            answer = self._answer(frame[0], client)
            with self._writing:
                self._stream.send(answer)

    def _answer(self, request: Header, client: Client) -> Header:
        said: Header = {}
        try:
            if request["op"] == "get":
                here = lies_here(request, client)
                self._trust.check(request, client, known=here)
                if not here:
                    from_somebody(request, client)
            elif request["op"] == "put":
                if not request["hex"]:
                    said = {"digest": name(request, client)}
                over_addresses(request, client, put)
            else:
                said = self._trust.recheck(request, client)
        except Refusal as refusal:
            return {"id": request["id"], "fail": refusal.answer}
        return {"id": request["id"], **said}
