"""`python -m device_agent`: read the configuration, prepare the node, run the daemon.

Exit codes: 0 ended in order; 2 a wrong argument or configuration; 69 something the daemon needs is
not to be had; 70 a fault of ours, with its trace in the data folder.
"""

import asyncio
import logging
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import structs

from device_agent import VERSION, config
from device_agent.artifacts.blobs import BlobFolder, blob_path
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import Fetcher, TlsFiles
from device_agent.core.core import Core
from device_agent.daemon import Daemon
from device_agent.executors.door import Executor
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor
from device_agent.folder import DataFolder
from device_agent.journal import Journal
from device_agent.senses import Senses
from device_agent.sensing.link import LinkSensor
from device_agent.sensing.sampler import Sampler
from device_agent.systemd import Notifier
from device_agent.workshop import Workshop
from firmware_profiles import Detection, Profile, select
from protocols.errors import EnvironmentFailure, UserError
from protocols.manifest import ExecutorKind
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.topics import Speaker
from protocols.transport.settings import Settings
from protocols.transport.sockets import open_socket

if TYPE_CHECKING:
    from protocols.transport.tls import Bundle

ARTIFACTS_MAX_BYTES: Final = 4 << 30
BLOBS_MAX_BYTES: Final = 256 << 20
BLOBS_MAX_AGE_S: Final = 600.0
WRONG_USE: Final = 2
ROOT: Final = Path("/")

log = logging.getLogger("tona.node")


class Setup:
    """A configuration held against this machine: names, folder, broker, trust."""

    def __init__(self, asked: config.Config) -> None:
        """Raise UserError or EnvironmentFailure, each with one sentence."""
        self.tls_files: TlsFiles | None = None
        tls = None
        if asked.bundle:
            # The TLS of the library takes memory that a loopback node need not hold.
            from protocols.transport import tls as trust  # noqa: PLC0415

            bundle = trust.load(Path(asked.bundle))
            if asked.node not in {"", bundle.name}:
                raise UserError(
                    f"{asked.bundle} is the bundle of {bundle.name!r}, not of {asked.node!r}: "
                    "leave --node out, or use the bundle of that node"
                )
            tls = trust.client_context(bundle)
            self.node, cell = bundle.name, asked.cell or bundle.cell
            broker = config.Address(bundle.broker_host, bundle.broker_port)
            if asked.broker:
                broker = config.parse_address(asked.broker)
        else:
            self.node, cell = asked.node, asked.cell or config.DEFAULT_CELL
            broker = config.parse_address(asked.broker or config.DEFAULT_BROKER)
            if not broker.loopback:
                raise UserError(
                    f"broker {broker.host} is another machine, so this node needs a bundle: run "
                    f"`tona ca issue {self.node}` at the controller and pass the file with --bundle"
                )
        self.cell = config.check_name("cell", cell)
        config.check_name("node", self.node)
        self.profile: Detection = select(asked.profile)
        self.folder = DataFolder(config.data_folder(asked, self.node, os.environ))
        if asked.bundle:
            self.tls_files = _write_tls(self.folder.path / "tls", bundle)
        self.settings = Settings(
            host=broker.host,
            port=broker.port,
            identity=self.node,
            speaker=Speaker.NODE,
            cell=self.cell,
            tls=tls,
        )


def _write_tls(folder: Path, bundle: "Bundle") -> TlsFiles:
    """Lay the bundle's parts out as files for the transfer process, readable by us alone."""
    folder.mkdir(mode=0o700, exist_ok=True)
    files = {}
    parts = {"ca": bundle.ca_pem, "certificate": bundle.certificate_pem, "key": bundle.key_pem}
    for name, pem in parts.items():
        path = folder / f"{name}.pem"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(pem)
        files[name] = path
    return TlsFiles(files["ca"], files["certificate"], files["key"])


class Node:
    """Everything one daemon is made of, wired."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._journal = Journal(setup.folder.path / "journal.db")
        self._daemon: Daemon | None = None
        self._workshop: Workshop | None = None

    async def run(self) -> str:
        """Prepare and run; return why it ended."""
        setup, loop = self._setup, asyncio.get_running_loop()
        data, profile = setup.folder.path, setup.profile.profile
        blobs_at = blob_path(setup.node, data / "blobs")
        blobs = BlobFolder(blobs_at, BLOBS_MAX_BYTES, BLOBS_MAX_AGE_S)
        cache = ArtifactCache(data / "artifacts", ARTIFACTS_MAX_BYTES, time.time())
        executors = self._executors(profile, blobs_at, data)
        found = await asyncio.gather(*(one.probe() for one in executors.values()))
        infos = tuple(one for one in found if one is not None)
        sampler = Sampler(ROOT, profile, now_ms=round(loop.time() * 1000), disk=data)
        inventory = sampler.inventory(infos)
        link, no_link = _link_sensor()
        warnings = tuple(
            one
            for one in (*setup.profile.warnings, *sampler.warnings, no_link, self._journal.warning)
            if one
        )
        core = Core(
            node=setup.node,
            agent_version=VERSION,
            boot_id=_boot_id(),
            inventory=inventory,
            warnings=warnings,
        )
        daemon = Daemon(
            core, self._journal, self._follow_broker(setup.settings), Notifier(os.environ)
        )
        workshop = Workshop(
            {one: executors[one] for one in executors if one.value in {i.kind for i in infos}},
            cache,
            blobs,
            Fetcher(cache, blobs, tls=setup.tls_files),
            daemon.tell,
            daemon.crash,
        )
        senses = Senses(sampler, link, daemon.tell, daemon.probe, daemon.link_is_back)
        daemon.attach(senses, workshop)
        self._daemon, self._workshop = daemon, workshop
        self._announce(inventory, infos, warnings)
        return await daemon.run()

    def _executors(self, profile: Profile, blobs: Path, data: Path) -> dict[ExecutorKind, Executor]:
        interpreter = profile.interpreter or sys.executable
        return {
            ExecutorKind.WASM: WasmExecutor(
                blobs=blobs, cache=data / "compiled", on_exit=self._exited
            ),
            ExecutorKind.ONNX: OnnxExecutor(
                blobs=blobs,
                empty=data / "empty",
                interpreter=interpreter,
                providers=profile.providers,
                on_exit=self._exited,
            ),
        }

    def _exited(self, instance: str, reason: str) -> None:
        if self._workshop is not None:
            self._workshop.exited(instance, reason)

    def _follow_broker(self, settings: Settings) -> Settings:
        """Note the numeric address of each connection, to know which interface leads there."""

        async def opened(wanted: Settings) -> socket.socket:
            line = await open_socket(wanted)
            if self._daemon is not None:
                self._daemon.broker_address = line.getpeername()[0]
            return line

        return structs.replace(settings, open_socket=opened)

    def _announce(
        self, inventory: Inventory, infos: tuple[ExecutorInfo, ...], warnings: tuple[str, ...]
    ) -> None:
        setup = self._setup
        executors = ", ".join(f"{one.kind} {one.version}" for one in infos) or "none"
        log.info(
            "device agent %s of node %s: profile %s (%s), cell %s, broker %s:%d, executors %s, "
            "data %s; absent: %s",
            VERSION,
            setup.node,
            inventory.profile,
            setup.profile.why,
            setup.cell,
            setup.settings.host,
            setup.settings.port,
            executors,
            setup.folder.path,
            ", ".join(inventory.absent) or "nothing",
        )
        for one in warnings:
            log.warning("%s", one)


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


def main() -> int:
    """Run the daemon; return its exit code. No traceback reaches the user."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    folder: Path | None = None
    try:
        setup = Setup(config.read(sys.argv[1:], os.environ))
        folder = setup.folder.path
        reason = asyncio.run(Node(setup).run())
    except UserError as error:
        print(f"device agent: {error}", file=sys.stderr)  # noqa: T201 - a person started us
        return WRONG_USE
    except EnvironmentFailure as error:
        print(f"device agent: {error}", file=sys.stderr)  # noqa: T201 - the same
        return os.EX_UNAVAILABLE
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # noqa: BLE001 - the process's outermost edge
        where = _keep_trace(folder)
        told = f"device agent: a fault of ours ends it: {type(error).__name__}: {error}{where}"
        print(told, file=sys.stderr)  # noqa: T201 - the same
        return os.EX_SOFTWARE
    log.info("ended: %s", reason)
    return 0


def _keep_trace(folder: Path | None) -> str:
    """Write the trace of the present fault where a report can take it from."""
    if folder is None:
        return ""
    path = folder / "fault.txt"
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (trace in {path})"


if __name__ == "__main__":
    sys.exit(main())
