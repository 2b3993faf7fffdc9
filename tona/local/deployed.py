"""A deployment on this machine: every controller process and every device agent a real process."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from controller.broker.lease import PortLease
from controller.broker.spec import EMBEDDED
from controller.child import module_command
from controller.decider import Role
from device_agent.artifacts.blobs import sweep
from protocols.errors import EnvironmentFailure, UserError
from protocols.folder import DataFolder
from tona.local.cell import UP, Running, node_command
from tona.local.deployments import Deployment, Process
from tona.local.place import Place
from tona.local.supervisor import Supervisor, Told


class Plan(Struct, frozen=True, kw_only=True):
    """What to run; an API port of 0 means any free one."""

    folder: Path
    deployment: Deployment
    nodes: int
    broker: str = EMBEDDED
    """`embedded` or `mosquitto`: each process starts one of its own."""
    api_port: int = 0
    """Of the process of NAMO."""
    places: Mapping[str, Place] = {}
    """Of processes and nodes, by name; on loopback as it comes, where nothing is said."""
    standing: Mapping[str, str] = {}
    """More nodes, each with its cell."""
    node_options: Mapping[str, tuple[str, ...]] = {}
    """More options of device agents, by node."""
    config: str = ""
    """File of the controllers' configuration; empty: none."""


class ProcessSeen(Struct, frozen=True):
    """A controller process that runs."""

    name: str
    roles: tuple[str, ...]
    cell: str
    api_url: str
    broker: str
    pid: int


class NodeSeen(Struct, frozen=True):
    """A device agent that runs."""

    name: str
    cell: str
    pid: int


class Seen(Struct, frozen=True):
    """Who is where; the line that `tona up --deployment NAME --json` prints."""

    deployment: str
    api_url: str
    """Of the process of NAMO: the one for people."""
    processes: tuple[ProcessSeen, ...]
    nodes: tuple[NodeSeen, ...]


class Deployed:
    """Starts and keeps the processes of a plan; lives on the main thread's event loop."""

    def __init__(self, plan: Plan, told: Told) -> None:
        self.plan = plan
        self.nodes = {**plan.standing, **plan.deployment.nodes(plan.nodes)}
        """The cell in which each node begins."""
        self._supervisor = Supervisor(plan.folder / "logs", told)
        self._held: list[DataFolder | PortLease] = []
        self._brokers: dict[str, str] = {}
        self._apis: dict[str, int] = {}

    @property
    def logs(self) -> Path:
        """Where each process writes its log."""
        return self.plan.folder / "logs"

    async def start(self) -> Seen:
        """Start every controller process, then the nodes. Raises UserError, EnvironmentFailure."""
        self._held.append(DataFolder(self.plan.folder, UP))
        processes = self.plan.deployment.processes
        for number, one in enumerate(processes):
            # Known before anything runs, so that each process can be told of all others.
            place = self._place(one.name)
            self._brokers[one.name] = self._broker(place)
            wanted = place.api_port if number else place.api_port or self.plan.api_port
            self._apis[one.name] = self._port(place, wanted, "the API")
        seen = await asyncio.gather(*(self._start_process(one) for one in processes))
        await asyncio.gather(*(self._start_node(name) for name in self.nodes))
        nodes = [NodeSeen(name, cell, self.pid(name)) for name, cell in self.nodes.items()]
        return Seen(self.plan.deployment.name, seen[0].api_url, tuple(seen), tuple(nodes))

    def pid(self, name: str) -> int:
        """Return the process id of a controller process or a node's device agent."""
        return self._supervisor.pid(name)

    def crash(self, name: str) -> int:
        """Kill a process at once (SIGKILL); it is started again. Returns its process id."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    async def move(self, name: str, cell: str) -> None:
        """Start a node's device agent anew in another cell. Raises EnvironmentFailure."""
        self.nodes[name] = cell
        await self._supervisor.renew(name)

    async def failed(self) -> EnvironmentFailure:
        """Wait until a process is beyond mending, and return why; may never return."""
        return await self._supervisor.failed()

    async def stop(self) -> None:
        """Stop the nodes, then the controller processes; safe after a failed start."""
        await self._supervisor.stop(*self.nodes)
        await self._supervisor.stop(*(one.name for one in self.plan.deployment.processes))
        sweep()
        while self._held:
            self._held.pop().close()

    def _place(self, name: str) -> Place:
        return self.plan.places.get(name, Place())

    def _broker(self, place: Place) -> str:
        if "://" in place.broker:
            return place.broker
        port = self._port(place, place.broker_port, "the broker")
        return f"{place.scheme}://{place.host}:{port}"

    def _port(self, place: Place, wanted: int, whom: str) -> int:
        if place.space:  # nobody else is there to take it
            return wanted
        try:
            lease = PortLease(place.host, wanted, whom)
        except UserError as error:
            # As in a cell of one controller, which finds its port taken after it has started.
            raise EnvironmentFailure(str(error)) from None
        self._held.append(lease)
        return lease.port

    async def _start_process(self, process: Process) -> ProcessSeen:
        space = self._place(process.name).space
        line = await self._supervisor.start(
            process.name, lambda: self._process(process), announces=True, space=space
        )
        try:
            running = msgspec.json.decode(line, type=Running)
        except msgspec.DecodeError:
            raise EnvironmentFailure(f"{process.name} announced {line[:80]!r}") from None
        roles = tuple(process.role(one) for one in process.roles)
        pid = self.pid(process.name)
        return ProcessSeen(process.name, roles, running.cell, running.api_url, running.broker, pid)

    async def _start_node(self, name: str) -> None:
        space = self._place(name).space
        await self._supervisor.start(name, lambda: self._node(name), space=space)

    def _node(self, name: str) -> Sequence[str]:
        cell, bundle = self.nodes[name], self._place(name).bundle
        more = [f"--bundle={bundle}"] if bundle else []
        more += self.plan.node_options.get(name, ())
        return node_command(name, cell, self._brokers[cell], self.plan.folder / name, *more)

    def _url(self, place: Place, name: str) -> str:
        return f"http{'s' if place.bundle else ''}://{place.host}:{self._apis[name]}"

    def _process(self, process: Process) -> Sequence[str]:
        deployment, first = self.plan.deployment, self.plan.deployment.processes[0]
        place, store = self._place(process.name), self._place(first.name)
        schedulers = deployment.holding(Role.TS)
        near = {
            role: process.role(role) if role in process.roles else deployment.names(role)[0]
            for role in Role
        }
        told = {
            "config": self.plan.config,
            "name": process.name,
            "cell": process.name,
            "data": self.plan.folder / process.name,
            "api-host": place.host,
            "api-port": self._apis[process.name],
            "broker": place.broker or self.plan.broker,
            "broker-host": place.host,
            "broker-port": self._brokers[process.name].rpartition(":")[2],
            "bundle": place.bundle,
            "authority": place.authority,
            "roles": ",".join(process.roles),
            **{role.value: name for role, name in near.items()},
            "anchors": ",".join(deployment.names(Role.TA)),
            "schedulers": ",".join(deployment.names(Role.TS)),
            "cells": ",".join(one.name for one in schedulers),
            "side": process.side,
            "uplink": "" if process is first else f"{self._brokers[first.name]}/{first.name}",
            "stores": "" if process is first else self._url(store, first.name),
        }
        if process.direct:
            told["direct"] = ",".join(f"{self._brokers[one.name]}/{one.name}" for one in schedulers)
        options = [f"--{name}={value}" for name, value in told.items() if value != ""]
        return module_command("tona", "controller", "--json", *options)
