"""The second stage of the daemon's process: everything one node is made of, wired and run.

Imports are few: executors, transfers and the journal's database are loaded when they are first
needed, so that an idle node holds none of them.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from binascii import crc32
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from device_agent import VERSION
from device_agent.artifacts.blobs import BlobFolder, blob_path, clear
from device_agent.artifacts.cache import ArtifactCache
from device_agent.core.core import Core
from device_agent.core.values import LOAD
from device_agent.daemon import Daemon
from device_agent.ending import to_the_end
from device_agent.executors.door import Executor
from device_agent.prepared import Prepared, take_over
from device_agent.senses import Senses
from device_agent.sensing.link import LinkSensor
from device_agent.sensing.sampler import Sampler
from device_agent.systemd import Notifier
from device_agent.told import heed
from device_agent.workshop import Makers, Workshop
from firmware_profiles.profile import Profile
from protocols.manifest import ExecutorKind
from protocols.messages.presence import Inventory
from protocols.topics import Speaker
from protocols.transport.settings import Settings
from protocols.transport.sockets import open_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from device_agent.artifacts.fetch import Fetcher, TlsFiles
    from device_agent.artifacts.sharing import Sharing
    from device_agent.executors.remote import OnExit
    from device_agent.journal import Journal
    from device_agent.logkeeper import LogKeeper
    from device_agent.sources import Sources

ARTIFACTS_MAX_BYTES: Final = 4 << 30
BLOBS_MAX_BYTES: Final = 256 << 20
BLOBS_MAX_AGE_S: Final = 600.0
EXECUTORS: Final = (ExecutorKind.WASM, ExecutorKind.ONNX, ExecutorKind.CONTAINER)
ROOT: Final = Path("/")
PRIVATE_FOLDER: Final = 0o700
TRUST: Final = "trust"
"""Folder, beside the artifacts, of what this node trusts."""
PRIVATE_FILE: Final = 0o600

log = logging.getLogger("tona.node")


def make_executor(
    kind: ExecutorKind,
    profile: Profile,
    blobs: Path,
    data: Path,
    on_exit: "OnExit | None" = None,
    runtime: str = "",
) -> Executor:
    """Make one kind of executor as the profile says. Raises EnvironmentFailure."""
    from device_agent.executors.remote import no_exit  # noqa: PLC0415 - see above

    told = on_exit or no_exit
    if kind is ExecutorKind.WASM:
        from device_agent.executors.wasm import WasmExecutor  # noqa: PLC0415 - see above

        return WasmExecutor(
            blobs=blobs,
            artifacts=data / "artifacts",
            cache=data / "compiled",
            memories=data / "memories",
            on_exit=told,
        )
    if kind is ExecutorKind.CONTAINER:
        from device_agent.executors.container import ContainerExecutor  # noqa: PLC0415 - see above

        return ContainerExecutor(blobs=blobs, images=data / "images", runtime=runtime, on_exit=told)
    from device_agent.executors.onnx import OnnxExecutor  # noqa: PLC0415 - see above

    return OnnxExecutor(
        blobs=blobs,
        empty=data / "empty",
        interpreter=profile.interpreter or sys.executable,
        providers=profile.providers,
        memory_share=profile.limits.task_memory_share,
        on_exit=told,
    )


def log_keeper(data: Path) -> "LogKeeper":
    """Make what keeps the records of calls, in the data folder."""
    from device_agent.logkeeper import LogKeeper  # noqa: PLC0415 - see above

    return LogKeeper(data / "calls")


def blobs_folder(node: str, data: Path) -> Path:
    """Return where large values lie: for this data folder alone, whatever the node is called."""
    return blob_path(f"{node}-{crc32(os.fsencode(data)):08x}", data / "blobs")


class Node:
    """One node, from what was prepared."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._data = Path(prepared.data)
        self._daemon: Daemon | None = None

    async def run(self) -> str:
        """Wire everything and run; return why it ended."""
        prepared, data = self._prepared, self._data
        blobs_at = blobs_folder(prepared.node, data)
        blobs = BlobFolder(blobs_at, BLOBS_MAX_BYTES, BLOBS_MAX_AGE_S)
        cache = ArtifactCache(data / "artifacts", ARTIFACTS_MAX_BYTES, time.time())
        now_ms = round(asyncio.get_running_loop().time() * 1000)
        sampler = Sampler(ROOT, prepared.profile, now_ms=now_ms, disk=data)
        inventory = structs.replace(
            sampler.inventory(prepared.executors),
            sensors=(LOAD, *sorted(prepared.sensors)),
            files=bool(prepared.files),
        )
        link, no_link = _link_sensor()
        settings, tls_files = self._settings()
        sharing = self._share(tls_files)
        warnings = (*prepared.warnings, *sampler.warnings, *((no_link,) if no_link else ()))
        core = Core(
            node=prepared.node,
            agent_version=VERSION,
            boot_id=_boot_id(),
            inventory=inventory,
            warnings=warnings,
            cell=prepared.cell,
            trust=prepared.trust,
            share_url=sharing.url if sharing is not None else "",
            radios=prepared.radios,
        )
        self._daemon = daemon = Daemon(
            core, prepared, settings, Notifier(os.environ), self._open_journal
        )
        makers = self._makers(cache, blobs, blobs_at, tls_files)
        workshop = Workshop(makers, cache, blobs, daemon.tell, daemon.crash)
        senses = Senses(sampler, link, daemon.tell, daemon.probe, daemon.link_is_back)
        daemon.attach(senses, workshop)
        self._announce(inventory, warnings)
        try:
            return await daemon.run()
        finally:
            if sharing is not None:
                sharing.close()
            _clear(blobs)
            counted = ", ".join(f"{name} {one}" for name, one in sorted(core.counts.items()) if one)
            if counted:
                log.info("dropped, refused or late: %s", counted)

    def _makers(
        self,
        cache: ArtifactCache,
        blobs: BlobFolder,
        blobs_at: Path,
        tls_files: "TlsFiles | None",
    ) -> Makers:
        prepared, data = self._prepared, self._data
        here = {one.kind for one in prepared.executors}

        def fetcher() -> "Fetcher":
            from device_agent.artifacts.fetch import Fetcher  # noqa: PLC0415 - see above

            trust = data / TRUST if tls_files else None
            return Fetcher(cache, blobs, tls=tls_files, trust=trust, node=prepared.node)

        def sources() -> "Sources":
            from device_agent.sources import Sources  # noqa: PLC0415 - see above

            return Sources(prepared.sensors, Path(prepared.files) if prepared.files else None)

        def executor(kind: ExecutorKind) -> "Callable[[OnExit], Executor]":
            return lambda told: make_executor(
                kind, prepared.profile, blobs_at, data, told, prepared.runtime
            )

        return Makers(
            {kind: executor(kind) for kind in EXECUTORS if kind.value in here},
            fetcher,
            sources,
            lambda: log_keeper(data),
        )

    def _share(self, tls_files: "TlsFiles | None") -> "Sharing | None":
        """Let neighbours fetch artifacts here, where that was asked for. Raises UserError."""
        if not self._prepared.share:
            return None
        from device_agent.artifacts.sharing import Sharing  # noqa: PLC0415 - few nodes share

        host, _, port = self._prepared.share.rpartition(":")
        return Sharing(host, int(port), self._data / "artifacts", tls_files)

    def _open_journal(self) -> "Journal":
        from device_agent.clock import around, unix_ms  # noqa: PLC0415 - see above
        from device_agent.journal import Journal  # noqa: PLC0415 - the same

        return Journal(self._data / "journal.db", unix_ms(around(self._data)))

    def _settings(self) -> "tuple[Settings, TlsFiles | None]":
        """Return the session's settings, and the files that transfers need. Raises UserError."""
        prepared = self._prepared
        settings = Settings(
            host=prepared.host,
            port=prepared.port,
            identity=prepared.node,
            speaker=Speaker.NODE,
            cell=prepared.cell,
            open_socket=self._open_socket,
        )
        if not prepared.bundle:
            return settings, None
        from device_agent.artifacts.fetch import TlsFiles  # noqa: PLC0415 - loopback goes without
        from protocols.transport import tls  # noqa: PLC0415 - the same

        bundle = tls.load(Path(prepared.bundle))
        folder = self._data / "tls"
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        files = TlsFiles(
            _write(folder / "ca.pem", bundle.ca_pem),
            _write(folder / "certificate.pem", bundle.certificate_pem),
            _write(folder / "key.pem", bundle.key_pem),
        )
        if bundle.root_json:
            folder = self._data / TRUST
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            _write(folder / "bootstrap.json", bundle.root_json)
        return structs.replace(settings, tls=tls.client_context(bundle)), files

    async def _open_socket(self, settings: Settings) -> socket.socket:
        """Note the line to the broker: which interface leads there, and what it carries."""
        line = await open_socket(settings)
        if self._daemon is not None:
            self._daemon.lines[settings.cell] = line
        return line

    def _announce(self, inventory: Inventory, warnings: tuple[str, ...]) -> None:
        prepared = self._prepared
        executors = ", ".join(f"{one.kind} {one.version}" for one in inventory.executors)
        log.info(
            "device agent %s of node %s: profile %s (%s), cell %s, broker %s:%d, executors %s, "
            "data %s; absent: %s",
            VERSION,
            prepared.node,
            inventory.profile,
            prepared.why,
            prepared.cell,
            prepared.host,
            prepared.port,
            executors or "none",
            prepared.data,
            ", ".join(inventory.absent) or "nothing",
        )
        for one in warnings:
            log.warning("%s", one)


def _write(path: Path, text: str) -> Path:
    """Lay a part of the bundle out for the transfer process, readable by us alone."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "w", encoding="ascii") as file:
        file.write(text)
    return path


def _clear(blobs: BlobFolder) -> None:
    """Give the memory back that values take: no call outlives the daemon."""
    try:
        clear(blobs.folder)
    except OSError as error:
        log.warning("%s: not emptied: %s", blobs.folder, error)


def _link_sensor() -> tuple[LinkSensor | None, str]:
    try:
        return LinkSensor(ROOT), ""
    except OSError as error:
        return None, f"Links are not reported: the kernel gives no netlink ({error.strerror})."


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def main(handle: int) -> int:
    """Run what was prepared; return the exit code."""
    heed()
    prepared = take_over(handle)

    def run() -> None:
        log.info("ended: %s", asyncio.run(Node(prepared).run()))

    return to_the_end(run, lambda: Path(prepared.data))
