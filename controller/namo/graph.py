"""The DAG of a service's tasks: an order that keeps the document's, and paths by cost."""

from collections.abc import Mapping, Sequence


def order(sources: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Sort tasks so that each stands after its sources; ties stay in the order given.

    Returns the sorted tasks, and those left over because a cycle holds them.
    """
    done: list[str] = []
    left = list(sources)
    while left:
        ready = next((one for one in left if all(s in done for s in sources[one])), None)
        if ready is None:
            break
        left.remove(ready)
        done.append(ready)
    return done, left


def longest_through(
    ordered: Sequence[str], sources: Mapping[str, Sequence[str]], cost: Mapping[str, float]
) -> dict[str, float]:
    """Return for each task the cost of the dearest path that leads through it."""
    before: dict[str, float] = {}
    after: dict[str, float] = dict.fromkeys(ordered, 0.0)
    for one in ordered:
        before[one] = max((before[s] + cost[s] for s in sources[one]), default=0.0)
    for one in reversed(ordered):
        for source in sources[one]:
            after[source] = max(after[source], cost[one] + after[one])
    return {one: before[one] + cost[one] + after[one] for one in ordered}


def needed(sources: Mapping[str, Sequence[str]], ends: Sequence[str]) -> set[str]:
    """Return the tasks on which the given ends depend, the ends among them."""
    found: set[str] = set()
    open_ends = [one for one in ends if one in sources]
    while open_ends:
        one = open_ends.pop()
        if one not in found:
            found.add(one)
            open_ends += [source for source in sources[one] if source in sources]
    return found
