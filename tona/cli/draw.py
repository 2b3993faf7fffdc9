"""Structs as rows and bars. Pure: values in, rich renderables out; what is absent is a dash."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

from msgspec.structs import replace
from rich.table import Table
from rich.text import Text

from controller.records import NodeView
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Accelerator, Trust
from protocols.messages.sense import AcceleratorLoad, LinkReport, LoadReport
from tona.cli.context import details, or_dash, table

BAR_CELLS: Final = 8
NARROW_CELLS: Final = 4
WIDE: Final = 130
"""Columns of a terminal from which the whole table of the fleet has room."""
BUSY_PERCENT: Final = 60.0
FULL_PERCENT: Final = 85.0
SIGNAL_NONE_DBM: Final = -90.0
SIGNAL_BEST_DBM: Final = -50.0
_STATE_STYLE: Final = {
    NodeState.ONLINE: "green",
    NodeState.SUSPECT: "yellow",
    NodeState.DRAINING: "cyan",
    NodeState.LOST: "red",
    NodeState.MOVED: "blue",
}
CAME_S: Final = 10.0
"""So long it is shown where a node has come from."""
_UNIT_STEP: Final = 1024
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def bar(percent: float | None, *, good_when_full: bool = False, cells: int = BAR_CELLS) -> Text:
    """Return a load bar with its number; a dash where there is no sensor."""
    if percent is None:
        return Text("-")
    filled = round(min(max(percent, 0.0), 100.0) / 100 * cells)
    strain = 100.0 - percent if good_when_full else percent
    style = "green" if strain < BUSY_PERCENT else "yellow" if strain < FULL_PERCENT else "red"
    text = Text("█" * filled, style=style)
    text.append("░" * (cells - filled), style="dim")
    text.append(f" {percent:3.0f} %" if cells == BAR_CELLS else f" {percent:.0f}%")
    return text


def size(count: int | None) -> str:
    """Return a number of bytes as a person says it."""
    if count is None:
        return "-"
    value = float(count)
    step = 0
    while value >= _UNIT_STEP and step < len(_UNITS) - 1:
        value /= _UNIT_STEP
        step += 1
    return f"{value:.1f} {_UNITS[step]}" if step else f"{count} B"


def fleet(nodes: Iterable[NodeView], width: int = WIDE) -> Table:
    """Return the fleet: every node with its load and its link; less of it where it is narrow."""
    wide = width >= WIDE
    cells = BAR_CELLS if wide else NARROW_CELLS
    nodes = list(nodes)
    # Of one cell alone there is nothing to tell.
    several = len({one.cell for one in nodes}) > 1 or any(one.handover for one in nodes)
    made = table(
        *(
            "NODE",
            "STATE",
            *(["CELL"] if several else []),
            *(["PROFILE"] if wide else []),
            "CPU",
            "MEMORY",
            "GPU/NPU",
            "LINK",
        ),
        *("QUALITY", ">RTT", *([">JITTER", ">LOSS"] if wide else []), ">TASKS"),
        *(["RESERVED"] if wide else []),
    )
    made.padding = (0, 2 if wide else 1, 0, 0)
    for node in nodes:
        # What a lost node said last is no longer so.
        lost = node.state in (NodeState.LOST, NodeState.MOVED)
        load, link = (None, None) if lost else (node.load, node.link)
        profile = [node.inventory.profile] if wide else []
        path = [
            or_dash(link and link.jitter_ms, "{:.1f} ms"),
            or_dash(link and link.loss_percent, "{:.0f} %"),
        ]
        made.add_row(
            node.node,
            Text(node.state.value, style=_STATE_STYLE[node.state]),
            *([_cell(node)] if several else []),
            *profile,
            bar(load.cpu_percent if load else None, cells=cells),
            bar(None if lost else memory_percent(node), cells=cells),
            accelerators(node.inventory.accelerators, load, cells),
            link_name(link),
            bar(link_quality(link), good_when_full=True, cells=cells),
            or_dash(link and link.round_trip_ms, "{:.1f} ms" if wide else "{:.1f}ms"),
            *(path if wide else []),
            "-" if lost else str(len(node.tasks)),
            *([reserved(node)] if wide else []),
        )
    return made


def line(node: NodeView) -> str:
    """Return a node on one line, as what reads a pipe wants it."""
    lost = node.state in (NodeState.LOST, NodeState.MOVED)
    load, link = (None, None) if lost else (node.load, node.link)
    memory = None if lost else memory_percent(node)
    parts = (
        node.node,
        node.state.value,
        f"cell {_cell(node)}",
        f"cpu {or_dash(load and load.cpu_percent, '{:.0f} %')}",
        f"memory {or_dash(memory, '{:.0f} %')}",
        f"link {link_name(link)}",
        f"rtt {or_dash(link and link.round_trip_ms, '{:.1f} ms')}",
        f"tasks {'-' if lost else len(node.tasks)}",
    )
    return "  ".join(parts)


def _cell(node: NodeView) -> Text:
    """Return which cell serves a node, and where it is on its way."""
    if not node.handover:
        return Text(node.cell or "-")
    return Text(f"{node.cell} {node.handover}", style="yellow")


def node_details(node: NodeView) -> Table:
    """Return everything about one node, a line each."""
    inventory, load = node.inventory, node.load
    executors = (
        f"{one.kind} {one.version}" + (f" ({one.security} security)" if one.security else "")
        for one in inventory.executors
    )
    rows: list[tuple[str, str | Text]] = [
        ("node", node.node),
        ("state", Text(node.state.value, style=_STATE_STYLE[node.state])),
        ("reason", node.reason or "-"),
        ("cell", node.cell or "-"),
        *([("handover", node.handover)] if node.handover else []),
        ("agent", or_dash(node.agent_version)),
        ("profile", inventory.profile),
        ("system", f"{inventory.os}, {inventory.arch}, {inventory.cpu_count} cores"),
        ("executors", ", ".join(executors) or "-"),
        ("accelerators", ", ".join(_accelerator(one) for one in inventory.accelerators) or "-"),
        ("cpu", bar(load.cpu_percent if load else None)),
        ("memory", bar(memory_percent(node))),
        ("memory of tasks", task_memory(node)),
        ("gpu/npu", accelerators(inventory.accelerators, load)),
        *_load_rows(load),
        *_link_rows(node.link),
        ("silent", f"{node.silent_ms} ms"),
        ("absent", ", ".join(inventory.absent) or "-"),
        ("tasks", ", ".join(node.tasks) or "-"),
        *_trust_rows(node.trust),
        *(("warning", one) for one in node.warnings),
    ]
    return details(rows)


def _trust_rows(trust: Trust | None) -> list[tuple[str, str | Text]]:
    if trust is None:
        return [("artifacts", "need no signature on loopback")]
    if not trust.root_version:
        said = "signed; not checked yet"
    else:
        until = datetime.fromtimestamp(trust.expires_unix_s, UTC)
        said = (
            f"signed; root version {trust.root_version}, timestamp until {until:%Y-%m-%d %H:%M} UTC"
        )
    return [("artifacts", said), *([("not checked", trust.problem)] if trust.problem else [])]


def reserved(node: NodeView) -> str:
    """Return what of a node's task memory is set aside, and how many times over it is promised."""
    have = node.inventory.task_memory_bytes
    if not have:
        return "-"
    times = node.promised_bytes / have
    return f"{node.reserved_bytes / have:.0%}" + (f" x{times:.1f}" if times > 1 else "")


def task_memory(node: NodeView) -> str:
    """Return what a node has for tasks, what is set aside, and what they may take at most."""
    have = node.inventory.task_memory_bytes
    said = f"{size(have)}, {size(node.reserved_bytes)} reserved"
    if node.promised_bytes <= have or not have:
        return said
    times = node.promised_bytes / have
    return f"{said}; over-committed {times:.1f} times: {size(node.promised_bytes)} by turns"


def memory_percent(node: NodeView) -> float | None:
    """Return the share of a node's memory that is in use; None where it was not reported."""
    if node.load is None or not node.inventory.memory_bytes:
        return None
    return 100.0 * node.load.memory_used_bytes / node.inventory.memory_bytes


def accelerators(
    have: Sequence[Accelerator], load: LoadReport | None, cells: int = BAR_CELLS
) -> Text:
    """Return the load of every accelerator; a dash where there is none."""
    loads = {one.index: one for one in load.accelerators} if load else {}
    parts = [
        Text(f"{one.kind} ").append_text(bar(_load_percent(loads.get(index)), cells=cells))
        for index, one in enumerate(have)
    ]
    return Text("  ").join(parts) if parts else Text("-")


def link_name(link: LinkReport | None) -> Text:
    """Return the kind of a link, and its signal or that it is down."""
    if link is None:
        return Text("-")
    if not link.carrier:
        return Text(f"{link.kind} down", style="red")
    signal = "" if link.signal_dbm is None else f" {link.signal_dbm:.0f} dBm"
    return Text(f"{link.kind}{signal}")


def link_quality(link: LinkReport | None) -> float | None:
    """Return the quality of a link in percent: the worse of its signal and its loss."""
    if link is None:
        return None
    if not link.carrier:
        return 0.0
    known: list[float] = []
    if link.loss_percent is not None:
        known.append(100.0 - link.loss_percent)
    if link.signal_dbm is not None:
        share = (link.signal_dbm - SIGNAL_NONE_DBM) / (SIGNAL_BEST_DBM - SIGNAL_NONE_DBM)
        known.append(100.0 * min(max(share, 0.0), 1.0))
    return min(known, default=None)


def _load_percent(load: AcceleratorLoad | None) -> float | None:
    return None if load is None else load.load_percent


def _accelerator(one: Accelerator) -> str:
    memory = "" if one.memory_bytes is None else f" {size(one.memory_bytes)}"
    return f"{one.kind} {one.name}{memory}"


def _load_rows(load: LoadReport | None) -> list[tuple[str, str | Text]]:
    if load is None:
        return []
    pressure = load.pressure
    stalled = (
        "-"
        if pressure is None
        else f"cpu {pressure.cpu_percent:.1f} %, memory {pressure.memory_percent:.1f} %, "
        f"io {pressure.io_percent:.1f} %"
    )
    throttled = None if load.throttled is None else "yes" if load.throttled else "no"
    return [
        ("cores", " ".join(f"{one:.0f} %" for one in load.cores_percent) or "-"),
        ("swap used", size(load.swap_used_bytes)),
        ("disk free", size(load.disk_free_bytes)),
        ("pressure", stalled),
        ("temperature", or_dash(load.temperature_c, "{:.1f} °C")),
        ("throttled", or_dash(throttled)),
        ("power", or_dash(load.power_w, "{:.1f} W")),
        ("battery", or_dash(load.battery_percent, "{:.0f} %")),
        ("invocations", f"{load.queue} under way, {load.instances} instances"),
        ("executor processes", f"{size(load.executors_bytes)} beside what tasks hold"),
    ]


class Came:
    """Remembers which nodes have just come from other cells: a handover is too short to be seen."""

    def __init__(self) -> None:
        self._cells: dict[str, str] = {}
        self._from: dict[str, tuple[str, float]] = {}
        """By node: the cell before, and when it was left."""

    def noted(self, nodes: Iterable[NodeView], now_s: float) -> list[NodeView]:
        """Return nodes, with where those of the last `CAME_S` seconds have come from."""
        shown = []
        for one in nodes:
            before = self._cells.get(one.node, one.cell)
            self._cells[one.node] = one.cell
            if before and one.cell and before != one.cell:
                self._from[one.node] = before, now_s
            source, at_s = self._from.get(one.node, ("", -CAME_S))
            lately = not one.handover and source and now_s - at_s < CAME_S
            shown.append(replace(one, handover=f"from {source}") if lately else one)
        return shown


def _link_rows(link: LinkReport | None) -> list[tuple[str, str | Text]]:
    if link is None:
        return [("link", "-")]
    rates = f"{_rate(link.rx_bytes_per_s)} in, {_rate(link.tx_bytes_per_s)} out"
    return [
        ("link", link_name(link).append(f" ({link.interface})")),
        ("link quality", bar(link_quality(link), good_when_full=True)),
        ("addresses", ", ".join(link.addresses) or "-"),
        ("speed", or_dash(link.speed_mbit_per_s, "{:.0f} Mbit/s")),
        ("rate", rates),
        ("round trip", or_dash(link.round_trip_ms, "{:.2f} ms")),
        ("jitter", or_dash(link.jitter_ms, "{:.2f} ms")),
        ("loss", or_dash(link.loss_percent, "{:.1f} %")),
        ("measuring cells", _measuring(link)),
        ("outbox", f"{link.kept} waited for a connection, {link.kept_dropped} dropped"),
        ("missed", f"{link.missed} published values came afterwards"),
        (
            "feeds",
            f"{link.feed_thinned} values too fast, {link.feed_replaced} gave way to newer ones",
        ),
        ("refused by broker", link.refused or "-"),
    ]


def _measuring(link: LinkReport) -> str:
    """Return what measuring the cells around takes."""
    if link.cells_bytes_per_s is None:
        return "- (no neighbours)"
    cost = f"{link.cells_bytes_per_s:.0f} B/s, {link.cells_cpu_percent or 0.0:.2f} % of a core"
    return cost + (", seldom: on battery" if link.cells_saving else "")


def _rate(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{size(round(bytes_per_s))}/s"


def moment(unix_ms: int) -> str:
    """Return a time of the wall clock here, without the date where it is today's; 0: `-`."""
    if not unix_ms:
        return "-"
    at = datetime.fromtimestamp(unix_ms / 1000).astimezone()
    today = at.date() == datetime.now().astimezone().date()
    return f"{at:%H:%M:%S.%f}"[:-3] if today else f"{at:%Y-%m-%d %H:%M:%S.%f}"[:-3]
