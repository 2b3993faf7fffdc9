"""The use case as a whole: its services beside each other, who asks, and the trigger."""

from typing import Final

from controller.namo.model import Origin, Service, Threshold, Trigger, UseCase
from controller.namo.reader import Problems
from protocols.messages.quality import SourceKind
from protocols.submission import near

AGGREGATES: Final = {
    "cpu_percent": True,
    "nodes": False,
    "lost": True,
    "cpu_count": False,
    "task_memory_free_bytes": False,
    "largest_free_bytes": False,
    "round_trip_ms": True,
}
"""What a trigger may look at; True: it is high in need (`at_least`), else low (`at_most`)."""


def check_use_case(use_case: UseCase, problems: Problems) -> None:
    """Hold the services against each other, and the trigger against who asks."""
    seen: dict[str, int] = {}
    for at, service in enumerate(use_case.services):
        if service.name in seen:
            problems.add(("services", at, "name"), f"{service.name!r} names another service too")
        seen[service.name] = at
    _check_topics(use_case, problems)
    trigger = use_case.trigger
    if trigger is not None:
        if use_case.origin not in (None, Origin.NETWORK):
            problems.add(
                ("origin",), f"a trigger is pulled by the network, not by {use_case.origin}"
            )
        _check_trigger(trigger, problems)
    elif use_case.origin is Origin.NETWORK:
        problems.add(("origin",), "the network asks by a trigger: give [trigger]")


def _check_trigger(trigger: Trigger, problems: Problems) -> None:
    if trigger.element is not None and trigger.network != "element":
        problems.add(("trigger", "element"), 'only network = "element" looks at one anchor')
    for name, one in trigger.when.items():
        where = ("trigger", "when", name)
        if name not in AGGREGATES:
            problems.add(where, f"there is no aggregate {name!r}{near(name, AGGREGATES)}")
            continue
        text = _threshold_problem(one)
        if text:
            problems.add(where, text)


def _threshold_problem(one: Threshold) -> str:
    if (one.at_least is None) == (one.at_most is None):
        return "give exactly one of at_least, at_most"
    if one.until is not None:
        if one.at_least is not None and one.until > one.at_least:
            return f"until lies above at_least, {one.at_least:g}: it would clear at once"
        if one.at_most is not None and one.until < one.at_most:
            return f"until lies below at_most, {one.at_most:g}: it would clear at once"
    return ""


def _check_topics(use_case: UseCase, problems: Problems) -> None:
    """Check that a topic of a service of the same document is its output, and no circle.

    With its own name it is its input, which programs publish on.
    """
    services = {one.name: one for one in use_case.services}
    for at, service in enumerate(use_case.services):
        for name, one in service.sources.items():
            if one.kind is not SourceKind.TOPIC:
                continue
            feeder, _, output = (one.name or name).rpartition(".")
            where = ("services", at, "sources", name, "name")
            if feeder == service.name:
                if output not in service.sources:
                    hint = near(output, service.sources)
                    problems.add(where, f"service {feeder!r} has no input {output!r}{hint}")
            elif feeder in services and output not in services[feeder].outputs:
                hint = near(output, services[feeder].outputs)
                problems.add(where, f"service {feeder!r} has no output {output!r}{hint}")
            elif feeder in services and _feeds(service.name, feeder, services):
                problems.add(where, f"services {service.name!r} and {feeder!r} feed each other")


def _feeds(wanted: str, start: str, services: dict[str, Service]) -> bool:
    """Whether what `start` takes from topics leads back to `wanted`."""
    seen: set[str] = set()
    left = [start]
    while left:
        one = left.pop()
        if one == wanted:
            return True
        if one in seen or one not in services:
            continue
        seen.add(one)
        left += [
            (source.name or name).rpartition(".")[0]
            for name, source in services[one].sources.items()
            if source.kind is SourceKind.TOPIC
        ]
    return False
