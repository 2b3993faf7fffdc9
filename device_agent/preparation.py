"""The first stage of the daemon's process: read the configuration, prepare, become the daemon."""

import asyncio
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec import structs

from device_agent import bytecode, config
from device_agent.artifacts.blobs import sweep
from device_agent.clock import around, unix_ms
from device_agent.ending import to_the_end
from device_agent.journal import Journal
from device_agent.prepared import Prepared, become_daemon
from device_agent.run import EXECUTORS, TRUST, blobs_folder, make_executor
from device_agent.told import heed
from firmware_profiles import Profile, select
from protocols.errors import UserError
from protocols.folder import DataFolder
from protocols.messages.presence import ExecutorInfo, Trust
from protocols.topics import Speaker

if TYPE_CHECKING:
    from protocols.transport.tls import Bundle


class Identity:
    """Who this node is and where its broker listens: the configuration, or its bundle."""

    def __init__(self, asked: config.Config) -> None:
        """Raise UserError, with one sentence."""
        bundle = _load_bundle(asked)
        self.node = config.check_name("node", bundle.name if bundle else asked.node)
        cell = asked.cell or (bundle.cell if bundle else config.DEFAULT_CELL)
        self.cell = config.check_name("cell", cell)
        self.broker = (
            config.Address(bundle.broker_host, bundle.broker_port)
            if bundle and not asked.broker
            else config.parse_address(asked.broker or config.DEFAULT_BROKER)
        )
        if bundle is None and not self.broker.loopback:
            raise UserError(
                f"broker {self.broker.host} is another machine, so this node needs a bundle: run "
                f"`tona ca issue {self.node}` at the controller and pass the file with --bundle"
            )


def _load_bundle(asked: config.Config) -> "Bundle | None":
    if not asked.bundle:
        return None
    from protocols.transport import tls  # noqa: PLC0415 - loopback goes without

    bundle = tls.load(Path(asked.bundle))
    if bundle.speaker is not Speaker.NODE:
        raise UserError(
            f"{asked.bundle} is the bundle of a {bundle.speaker}: "
            "make a node's with `tona ca issue`"
        )
    if asked.node not in {"", bundle.name}:
        raise UserError(
            f"{asked.bundle} is the bundle of {bundle.name!r}, not of {asked.node!r}: "
            "leave --node out, or use the bundle of that node"
        )
    return bundle


class _Probed(NamedTuple):
    executors: tuple[ExecutorInfo, ...]
    doubts: tuple[str, ...]
    """Of what is installed and does not work, for people."""


async def _probe(node: str, profile: Profile, data: Path, runtime: str) -> _Probed:
    blobs = blobs_folder(node, data)
    executors = [make_executor(kind, profile, blobs, data, runtime=runtime) for kind in EXECUTORS]
    try:
        found = await asyncio.gather(*(one.probe() for one in executors))
    finally:
        for one in executors:
            await one.close()
    doubts = [doubt for one in executors for doubt in getattr(one, "doubts", ())]
    return _Probed(tuple(one for one in found if one is not None), tuple(doubts))


def trusted(data: Path) -> Trust:
    """Return what this node trusted last of those who sign artifacts."""
    try:
        found = json.loads((data / TRUST / "state.json").read_bytes())
        return Trust(int(found["root"]), int(found["expires"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Trust()


def unchecked() -> tuple[str, ...]:
    """Say, for people, when signatures are asked for and cannot be checked here."""
    if find_spec("tuf") is not None:
        return ()
    return (
        "No artifact will run: who signed it cannot be checked: pip install 'tona-edge[trust]'",
    )


class Preparation:
    """The first stage; `folder` is there once it is ours."""

    def __init__(self) -> None:
        self.folder: DataFolder | None = None

    def __call__(self) -> None:
        """Prepare, and become the daemon. Raises UserError or EnvironmentFailure."""
        asked = config.read(sys.argv[1:], os.environ)
        identity = Identity(asked)
        detection = select(asked.profile)
        data = config.data_folder(asked, identity.node, os.environ)
        self.folder = folder = DataFolder(data, "device agent")
        sweep()
        witnesses = [*around(data), *([Path(asked.bundle)] if asked.bundle else [])]
        journal = Journal(data / "journal.db", unix_ms(witnesses))
        restored = journal.restored()
        incarnation, reserved = journal.reserve()
        journal.close()
        probed = asyncio.run(_probe(identity.node, detection.profile, data, asked.runtime))
        warnings = (
            *detection.warnings,
            *((journal.warning,) if journal.warning else ()),
            *probed.doubts,
            *(unchecked() if asked.bundle else ()),
        )
        become_daemon(
            Prepared(
                node=identity.node,
                cell=identity.cell,
                host=identity.broker.host,
                port=identity.broker.port,
                bundle=str(Path(asked.bundle).absolute()) if asked.bundle else "",
                data=str(data),
                lock=folder.lock,
                profile=detection.profile,
                why=detection.why,
                warnings=warnings,
                executors=probed.executors,
                restored=structs.replace(restored, incarnation=incarnation),
                sensors=asked.sensors,
                files=config.files_folder(asked),
                incarnation=incarnation,
                reserved=reserved,
                runtime=asked.runtime,
                share=config.share_address(asked),
                radios=config.radios(asked),
                switch=config.switch_program(asked),
                keeps_address=config.keeps_address(asked),
                radio=config.radio(asked),
                attachment=str(Path(asked.attachment).absolute()) if asked.attachment else "",
                trust=trusted(data) if asked.bundle else None,
            ),
            bytecode.options(bytecode.folder(os.environ)),
        )


def prepare() -> int:
    """Prepare the node and become its daemon; returns only an exit code of what went wrong."""
    heed()
    preparation = Preparation()
    return to_the_end(preparation, lambda: preparation.folder.path if preparation.folder else None)
