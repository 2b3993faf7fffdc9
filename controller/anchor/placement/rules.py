"""Which nodes may run a task at all, each rule with the clause that a person reads."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from controller.anchor.placement.columns import SECURITY, SECURITY_LEVELS, Bools, Columns
from controller.anchor.placement.facts import Request
from protocols.manifest import Manifest
from protocols.messages.hierarchy import TaskSpec
from protocols.qoais_map import EXPECTED_MS, expected_ms

PRIVACY = "data_privacy"


class Program(NamedTuple):
    """One way to do a task's work: its manifest, or a variant."""

    name: str
    """Of the variant; empty: the manifest of the specification."""
    manifest: Manifest
    expected_ms: float

    @property
    def memory_bytes(self) -> int:
        """What a node sets aside for it."""
        return self.manifest.limits.memory_bytes


class Rule(NamedTuple):
    """What a node must keep."""

    holds: Bools
    """For each node."""
    why: Callable[[int], str]
    """What is to be said of a node, by its index, where it does not hold."""


def programs(request: Request) -> tuple[Program, ...]:
    """Return the programs that may do the task, the manifest first."""
    spec = request.spec
    first = Program("", spec.manifest, expected_ms(spec))
    others = (
        Program(one.name, one.manifest, one.expected_ms or EXPECTED_MS[one.manifest.kind])
        for one in spec.variants
    )
    return (first, *others)


def privacy(spec: TaskSpec) -> str:
    """Return how far the raw input of a task may go: `node`, `cell` or `core`."""
    return _level(spec, PRIVACY) or "core"


def _level(spec: TaskSpec, indicator: str) -> str:
    levels = (one.level for one in spec.qos.bounds if one.indicator == indicator and one.level)
    return next(levels, "") or ""


def _saying(clause: str) -> Callable[[int], str]:
    return lambda _: clause


def rules(request: Request, program: Program, columns: Columns) -> list[Rule]:
    """Return the rules of one task under one program; what the plan itself takes is not in them."""
    spec = request.spec
    kind = program.manifest.kind.value
    if request.fixed and request.fixed not in columns.index:
        nowhere = np.zeros(len(columns.names), bool)
        return [Rule(nowhere, lambda _: f"is not {request.fixed}, which the task keeps")]
    found = [
        Rule(columns.online, lambda at: f"is {columns.facts[at].state}"),
        Rule(columns.has_executor(kind), lambda _: f"has no {kind} executor"),
    ]
    asked = _level(spec, SECURITY)
    if asked in SECURITY_LEVELS[1:]:
        given = columns.security(kind)
        found.append(
            Rule(
                given >= SECURITY_LEVELS.index(asked),
                lambda at: (
                    f"its {kind} executor keeps {SECURITY_LEVELS[given[at]]} computing security, "
                    f"{asked} is asked for"
                ),
            )
        )
    if spec.nodes:
        named = columns.at(spec.nodes)
        found.insert(1, Rule(named, lambda _: "is not among the nodes that the task names"))
    if spec.demand.accelerator:
        wanted = spec.demand.accelerator
        found.append(Rule(columns.has_accelerator(wanted), lambda _: f"has no {wanted}"))
    if spec.origins and privacy(spec) != "core":
        origins = columns.at(spec.origins)
        if privacy(spec) == "node":
            clause = "is not where the task's raw input comes to be, which may not leave its node"
            found.append(Rule(origins, lambda _: clause))
        else:
            within = np.zeros(len(origins), bool)
            for cell in columns.cells:
                within[cell] = origins[cell].any()
            clause = "lies outside the cell that the task's raw input may not leave"
            found.append(Rule(within, lambda _: clause))
    for without, nodes in request.confined.items():
        found.append(Rule(columns.at(nodes), _saying(without)))
    return found
