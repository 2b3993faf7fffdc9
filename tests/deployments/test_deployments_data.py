"""Deployments as data, and the configuration that makes a process of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests_support import INVENTORY

from controller.config import Config, meeting_point, read
from controller.decider import Record, Role, View
from controller.records import FLEET, JOB, NODE, SERVICE, JobRecord, NodeRecord, NodeView
from controller.registry import LiveRegistry, Registry
from controller.roles import deciders, elsewhere, holding_roles, serving_role
from protocols.errors import UserError
from protocols.messages import JobSubmit
from protocols.messages.hierarchy import NodeState
from protocols.messages.job import JobState
from tona.local.deployed import Deployed, Plan
from tona.local.deployments import DEPLOYMENTS, Deployment, deployment


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: one.name)
def test_every_role_has_its_place_and_the_first_process_is_for_people(one: Deployment) -> None:
    assert Role.NAMO in one.processes[0].roles
    for role in Role:
        assert one.holding(role)
    names = [one.role(role) for one in one.processes for role in one.roles]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: one.name)
def test_nodes_are_spread_over_the_cells_under_names_of_their_own(one: Deployment) -> None:
    nodes = one.nodes(5)
    cells = {process.name for process in one.holding(Role.TS)}
    assert len(nodes) == 5
    assert set(nodes.values()) == cells
    assert not nodes.keys() & {process.name for process in one.processes}


def test_an_unknown_deployment_is_told_with_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"no deployment 'mesh': choose one of gnodeb-ues, gnodebs-ues"
    ):
        deployment("mesh")


def config_of(command: Sequence[str]) -> Config:
    """Read a process's command line as `tona controller` does."""
    flags = dict(one.removeprefix("--").split("=", 1) for one in command if "=" in one)
    return read(None, {}, {name.replace("-", "_"): value for name, value in flags.items()})


async def configs(folder: Path, name: str) -> dict[str, Config]:
    one = Deployed(Plan(folder=folder, deployment=deployment(name), nodes=2), lambda *_: None)
    for process in one.plan.deployment.processes:
        one._brokers[process.name] = f"mqtt://127.0.0.1:{1000 + len(one._brokers)}"
        one._apis[process.name] = 2000 + len(one._apis)
    return {
        process.name: config_of(one._process(process)) for process in one.plan.deployment.processes
    }


@pytest.mark.parametrize("one", DEPLOYMENTS, ids=lambda one: one.name)
async def test_every_link_is_opened_from_both_of_its_ends(tmp_path: Path, one: Deployment) -> None:
    found = await configs(tmp_path, one.name)
    ends = {pair for config in found.values() for pair in elsewhere(config)}
    assert ends == {(peer, own) for own, peer in ends}
    together = {
        frozenset((own, peer))
        for process in one.processes
        for own in map(process.role, process.roles)
        for peer in map(process.role, process.roles)
        if own != peer
    }
    layers = {
        frozenset((upper, lower))
        for above, below in ((Role.NAMO, Role.TA), (Role.TA, Role.TS))
        for upper in one.names(above)
        for lower in one.names(below)
    }
    assert {frozenset(pair) for pair in ends} == layers - together


async def test_the_core_hears_the_ues_itself(tmp_path: Path) -> None:
    found = await configs(tmp_path, "cn-gnodeb-ues")
    assert found["core"].direct == ("mqtt://127.0.0.1:1001/gnodeb",)
    assert found["core"].side == "core"
    assert found["gnodeb"].uplink == "mqtt://127.0.0.1:1000/core"
    assert found["gnodeb"].stores == ("http://127.0.0.1:2000",)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"roles": "ta,ta"}, "named twice"),
        ({"roles": "boss"}, "choose from namo, ta, ts"),
        ({"roles": ""}, "length >= 1"),
        ({"roles": "ts", "direct": "mqtt://127.0.0.1/x"}, "for a process with the role ta"),
        ({"side": "left"}, "choose from core, radio"),
        ({"anchors": "a b"}, r"--anchors\[0\]: expected a name"),
    ],
)
def test_a_wrong_configuration_is_one_sentence(flags: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(None, {}, flags)


def test_words_of_a_list_come_from_the_environment_too() -> None:
    config = read(None, {"TONA_ROLES": "ta, ts", "TONA_ANCHORS": "a,b"}, {})
    assert config.roles == (Role.TA, Role.TS)
    assert config.anchors == ("a", "b")


@pytest.mark.parametrize("url", ["", "mqtt://127.0.0.1:1883", "127.0.0.1/cell", "mqtt://h:1/a b"])
def test_a_meeting_point_needs_a_broker_and_a_cell(url: str) -> None:
    with pytest.raises(UserError):
        meeting_point(url)


def test_one_process_alone_runs_all_roles_and_opens_no_link() -> None:
    config = Config()
    assert [one.name for one in deciders(config, 1, ())] == ["namo-main", "ta-main", "ts-main"]
    assert elsewhere(config) == []


def test_a_node_is_forgotten_wherever_it_was_seen() -> None:
    """Each process is asked once, whoever has not lost the node first."""
    registry = LiveRegistry(Registry("e"))
    config = read(None, {}, {"roles": "namo,ta,ts", "ts": "ts-here"})

    def roles(node: str) -> list[str]:
        return holding_roles(config, registry.merger, node)

    lost = NodeView("n", NodeState.LOST, "ts-here", INVENTORY)
    record = NodeRecord("n", "1", "b", INVENTORY)
    registry.apply([Record(NODE, "n", record, "x")], [View(FLEET, "n", lost)])
    assert roles("n") == ["ts-here"]
    there = NodeView("n", NodeState.ONLINE, "ts-du-1", INVENTORY)
    for source in ("desk-ta-du-1", "desk-ts-du-2"):
        registry.show(registry.merger.merge(source, [View(NODE, "n", record)]))
    registry.show(registry.merger.merge("desk-ta-du-1", [View(FLEET, "n", there)]))
    assert roles("n") == ["ta-du-1", "ts-here", "ts-du-2"]
    assert roles("nobody") == []


class Named:
    def __init__(self, **names: str) -> None:
        self.__dict__.update(names)


def test_an_operation_goes_to_the_role_that_serves_it() -> None:
    registry = Registry("e")
    config = read(None, {}, {"roles": "namo", "namo": "namo-m", "ta": "ta-cu", "ts": "ts-cu"})

    def role(operation: str, **names: str) -> str:
        return serving_role(config, registry, operation, Named(**names))  # type: ignore[arg-type]

    assert role("usecase.submit") == "namo-m"
    assert role("node.drain", name="ue-1") == ""
    view = NodeView("ue-1", NodeState.ONLINE, "ts-du-1", INVENTORY)
    service = Named(anchor="ta-cu")
    job = JobRecord(JobSubmit("j", "s", {}), "c", "default", JobState.RUNNING)
    registry.apply([View(FLEET, "ue-1", view), View(JOB, "j", job)])
    registry.apply([View(SERVICE, "s", service)])  # type: ignore[arg-type]
    assert role("node.drain", name="ue-1") == "ts-du-1"
    assert role("job.submit", service="s") == "ta-cu"
    assert role("job.cancel", name="j") == "ta-cu"
