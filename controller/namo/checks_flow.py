"""What comes in and goes out beside clients, and whether alternatives do the same.

These run when every edge of the service leads somewhere.
"""

from controller.namo.lines import Path
from controller.namo.model import MAIN, Alternative, Output, Service, Source
from controller.namo.reader import Problems
from controller.namo.wiring import agree, asked_of_request, come_from, given_to_client, spelt
from protocols.messages.invocation import REQUEST
from protocols.messages.quality import SourceKind
from protocols.submission import near


def check_alternatives(service: Service, path: Path, problems: Problems) -> None:
    """Each alternative takes what the service takes, or less of it, and gives what it gives."""
    main, *others = service.ways()
    asked, given = asked_of_request(main), given_to_client(main)
    seen = {MAIN}
    for at, way in enumerate(others):
        where = (*path, "alternatives", at)
        if way.name in seen:
            why = "is the service itself" if way.name == MAIN else "names another alternative too"
            problems.add((*where, "name"), f"{way.name!r} {why}")
        seen.add(way.name)
        _check_same(given, way, where, problems)
        for name, one in asked_of_request(way).items():
            if name not in asked:
                problems.add(
                    where, f"it asks the client for {name!r}, which the service itself does not"
                )
            elif not agree(asked[name], one.dtype, one.shape):
                problems.add(
                    where,
                    f"it takes request.{name} as {spelt(one.dtype, one.shape)}, "
                    f"but the service as {spelt(asked[name].dtype, asked[name].shape)}",
                )


def _check_same(given: dict[str, Output], way: Alternative, path: Path, problems: Problems) -> None:
    mine = given_to_client(way)
    for name in given.keys() - mine.keys():
        problems.add((*path, "outputs"), f"the service gives {name!r}, this alternative does not")
    for name, one in mine.items():
        where = (*path, "outputs", name)
        if name not in given:
            problems.add(where, f"the service itself has no output {name!r}{near(name, given)}")
        elif not agree(given[name], one.dtype, one.shape):
            problems.add(
                where,
                f"it gives {spelt(one.dtype, one.shape)}, "
                f"the service {spelt(given[name].dtype, given[name].shape)}",
            )


def check_sources(service: Service, path: Path, problems: Problems) -> None:
    """Each source feeds an input of the service, with values of its type, at a rate above 0."""
    asked = asked_of_request(service.ways()[0])
    for name, one in service.sources.items():
        where = (*path, "sources", name)
        if name not in asked:
            problems.add(where, f"no task takes request.{name}{near(name, asked)}")
            continue
        want = asked[name]
        if not agree(want, one.dtype, one.shape):
            given = spelt(one.dtype or want.dtype, one.shape or want.shape)
            problems.add(
                where, f"it gives {given}, but request.{name} is {spelt(want.dtype, want.shape)}"
            )
        if one.rate_per_s <= 0:
            problems.add((*where, "rate_per_s"), "it must be above 0")
        if len(set(one.nodes)) < len(one.nodes):
            problems.add((*where, "nodes"), "a node is named twice")
        _check_topic(name, one, where, problems)
    missing = [name for name in asked if name not in service.sources]
    if service.sources and missing:
        problems.add(
            (*path, "sources"),
            f"the sources make whole requests: request.{missing[0]} has none",
        )
    _check_raw_nodes(service, path, problems)


def _check_raw_nodes(service: Service, path: Path, problems: Problems) -> None:
    """Check that a task which stays with its raw input has a node that is named everywhere."""
    levels = {one.indicator: one.level for one in service.sla.all_bounds()}
    if levels.get("data_privacy") != "node":
        return
    for at, way in enumerate(service.ways()):
        where = (*path, "alternatives", at - 1) if at else path
        for number, task in enumerate(way.tasks):
            comes = [come_from(one.source) for one in task.inputs.values()]
            fed = [
                service.sources[come.port]
                for come in comes
                if come.step == REQUEST and come.port in service.sources
            ]
            named = [set(one.nodes) for one in fed if one.nodes]
            named += [set(task.nodes)] if task.nodes else []
            if fed and named and not set.intersection(*named):
                problems.add(
                    (*where, "tasks", number),
                    f"data_privacy is node, but no node has all that feeds task {task.name!r} "
                    "and is among its nodes",
                )


def _check_topic(name: str, one: Source, path: Path, problems: Problems) -> None:
    if one.kind is not SourceKind.TOPIC:
        return
    service, dot, output = (one.name or name).rpartition(".")
    if not (dot and service and output):
        problems.add(
            (*path, "name"), f"{one.name or name!r} is no topic: write the name as SERVICE.OUTPUT"
        )
    if one.nodes:
        problems.add((*path, "nodes"), "a topic is heard by the node of the first task: name none")


def check_sinks(service: Service, path: Path, problems: Problems) -> None:
    """Each sink takes an output of the service."""
    for name in service.sinks:
        if name not in service.outputs:
            problems.add(
                (*path, "sinks", name),
                f"the service has no output {name!r}{near(name, service.outputs)}",
            )
