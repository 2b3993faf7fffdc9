"""Which nodes may run a task at all, each rule with the clause that a person reads."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from controller.anchor.placement.columns import SECURITY, SECURITY_LEVELS, Bools, Columns
from controller.anchor.placement.facts import Request
from protocols.forms import is_form
from protocols.manifest import ExecutorKind, Manifest
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.presence import Inventory
from protocols.qoais_map import EXPECTED_MS, expected_ms

PRIVACY = "data_privacy"


class Program(NamedTuple):
    """One way to do a task's work: its manifest, or a variant."""

    name: str
    """Of the variant; empty: the manifest of the specification."""
    manifest: Manifest
    expected_ms: float
    provider: str = ""
    """ONNX execution provider; empty: the node's choice."""
    rank: int = 0
    """Of its provider, the best first."""
    form: bool = True
    """Whether it is as good as the task's own program."""

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


def programs(spec: TaskSpec, providers: Sequence[str] = ()) -> tuple[Program, ...]:
    """Return the programs that may do a task's work, its own first, each with its providers.

    `providers` are those that drive the accelerators of the fleet; an author may name others.
    """
    first = Program("", spec.manifest, expected_ms(spec))
    others = (
        Program(
            one.name,
            one.manifest,
            one.expected_ms or EXPECTED_MS[one.manifest.kind],
            form=is_form(spec, one),
        )
        for one in spec.variants
    )
    return tuple(one for program in (first, *others) for one in _provided(program, providers))


def _provided(program: Program, known: Sequence[str]) -> Iterator[Program]:
    """Yield a program with each provider that it may have, and as a node without any runs it."""
    given = program.manifest.providers or known
    if program.manifest.kind is ExecutorKind.ONNX and len(given) > 1:
        for rank, provider in enumerate(given):
            yield program._replace(provider=provider, rank=rank)
        program = program._replace(rank=len(given))
    yield program


def runs_on(program: Program, inventory: Inventory) -> bool:
    """Whether a node has the executor and the provider of a program."""
    executor = next((one for one in inventory.executors if one.kind == program.manifest.kind), None)
    return executor is not None and program.provider in ("", *executor.providers)


def chosen(request: Request, providers: Sequence[str]) -> tuple[Program, ...]:
    """Return the programs to weigh for a request: all of them, or the one that it keeps."""
    found = programs(request.spec, providers)
    if not request.bound or request.program is None:
        return found
    kept = tuple(one for one in found if (one.name, one.provider) == request.program)
    return kept or found


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
    if program.provider:
        having = columns.has_provider(program.provider)
        found.append(Rule(having, lambda _: f"has no {program.provider}"))
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
