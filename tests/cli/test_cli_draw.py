"""Rows and bars: what is absent is a dash, never a 0."""

import io
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from controller.handover_records import HandoverRecord, HandoverState
from controller.records import NodeView
from controller.records import Option as Weighed
from protocols.messages.hierarchy import NodeState
from protocols.messages.presence import Accelerator, Inventory
from protocols.messages.sense import AcceleratorLoad, LinkReport, LoadReport
from tona.cli import draw
from tona.cli.handovers import _details, _rows
from tona.cli.tasks import options_table

BARE = Inventory(
    profile="generic-x86-64",
    arch="x86_64",
    os="Linux",
    cpu_count=4,
    memory_bytes=1000,
    disk_bytes=1,
)
GPU = Inventory(
    profile="jetson-orin", arch="aarch64", os="Linux", cpu_count=8, memory_bytes=1000, disk_bytes=1,
    accelerators=(Accelerator("gpu", "Orin"), Accelerator("npu", "DLA")),
)  # fmt: skip
LOAD = LoadReport(sampled_ms=0, cpu_percent=50.0, memory_used_bytes=250)


def text(what: Any, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(what)
    return out.getvalue()


def link(**more: Any) -> LinkReport:
    return LinkReport(0, "wlan0", "wifi", **{"carrier": True, **more})


def view(inventory: Inventory = BARE, state: NodeState = NodeState.ONLINE, **more: Any) -> NodeView:
    return NodeView(node="n1", state=state, scheduler="ts", inventory=inventory, **more)


def test_where_a_node_has_come_from_is_shown_for_a_while() -> None:
    came = draw.Came()

    def seen(cell: str, at_s: float, handover: str = "") -> str:
        return came.noted([view(cell=cell, handover=handover)], at_s)[0].handover

    assert [seen("a", 0.0), seen("b", 1.0), seen("b", 1.0 + draw.CAME_S / 2)] == [
        "",
        *["from a"] * 2,
    ]
    assert seen("b", 2.0, "to c") == "to c"
    assert seen("b", 1.1 + draw.CAME_S) == ""


def test_a_node_that_has_reported_nothing_shows_dashes() -> None:
    row = text(draw.fleet([view()])).split("\n")[1].split()
    assert row == ["n1", "online", "generic-x86-64", *["-"] * 8, "0", "-"]


def test_a_node_says_how_many_times_over_its_memory_is_promised() -> None:
    roomy = structs.replace(BARE, task_memory_bytes=1 << 30)
    node = view(roomy, reserved_bytes=1 << 29, promised_bytes=3 << 30)
    assert text(draw.fleet([node])).split("\n")[1].split()[-2:] == ["50%", "x3.0"]
    told = "1.0 GiB, 512.0 MiB reserved; over-committed 3.0 times: 3.0 GiB by turns"
    assert told in text(draw.node_details(node))
    assert (
        draw.task_memory(structs.replace(node, promised_bytes=0)) == "1.0 GiB, 512.0 MiB reserved"
    )


def test_a_node_on_one_line_is_told_without_bars() -> None:
    node = view(cell="a", handover="from b", load=LOAD, link=link(round_trip_ms=3.21), tasks=("t",))
    assert draw.line(node) == (
        "n1  online  cell a from b  cpu 50 %  memory 25 %  link wifi  rtt 3.2 ms  tasks 1"
    )
    lost = structs.replace(node, state=NodeState.LOST, handover="")
    assert draw.line(lost) == ("n1  lost  cell a  cpu -  memory -  link -  rtt -  tasks -")


def test_a_handover_that_was_a_ping_pong_is_marked() -> None:
    there = HandoverRecord("n1-1", "n1", 1, "a", "b", HandoverState.COMPLETED)
    back = HandoverRecord("n1-2", "n1", 2, "b", "a", HandoverState.COMPLETED, ping_pong=True)
    [head, *rows] = text(_rows([back, there])).splitlines()
    assert head.split()[5] == "PING-PONG"
    assert [one.split()[5] for one in rows] == ["yes", "-"]
    assert "yes: back in the cell that it had just left" in text(_details(back))


def test_what_a_lost_node_said_last_is_not_shown_as_so() -> None:
    row = text(draw.fleet([view(state=NodeState.LOST, load=LOAD, link=link())])).split("\n")[1]
    assert row.split()[:5] == ["n1", "lost", "generic-x86-64", "-", "-"]


def test_load_accelerators_and_link_are_bars() -> None:
    load = LoadReport(
        sampled_ms=0,
        cpu_percent=50.0,
        memory_used_bytes=250,
        accelerators=(AcceleratorLoad(0, load_percent=100.0),),
    )
    report = link(signal_dbm=-61.0, round_trip_ms=3.21, jitter_ms=0.5, loss_percent=2.0)
    row = text(draw.fleet([view(GPU, load=load, link=report, tasks=("t1",))])).split("\n")[1]
    assert "████░░░░  50 %" in row
    assert "██░░░░░░  25 %" in row
    assert "gpu ████████ 100 %  npu -" in row
    assert "wifi -61 dBm  ██████░░  72 %  3.2 ms  0.5 ms   2 %      1" in row


def test_a_narrow_terminal_gets_what_fits() -> None:
    report = link(signal_dbm=-61.0, round_trip_ms=3.21)
    shown = text(draw.fleet([view(load=LOAD, link=report)], 80), 80)
    assert "…" not in shown
    assert "██░░ 50%" in shown
    assert max(len(line.rstrip()) for line in shown.split("\n")) <= 80


@pytest.mark.parametrize(
    ("report", "quality"),
    [
        (None, None),
        (link(), None),
        (link(carrier=False, loss_percent=0.0), 0.0),
        (link(loss_percent=10.0), 90.0),
        (link(loss_percent=10.0, signal_dbm=-90.0), 0.0),
        (link(loss_percent=10.0, signal_dbm=-30.0), 90.0),
    ],
)
def test_the_quality_of_a_link_is_its_worse_side(
    report: LinkReport | None, quality: float | None
) -> None:
    assert draw.link_quality(report) == quality


def test_a_link_that_is_down_says_so() -> None:
    assert text(draw.link_name(link(carrier=False))) == "wifi down\n"


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 50, "5120.0 TiB")],
)
def test_sizes_are_said_as_people_say_them(count: int | None, said: str) -> None:
    assert draw.size(count) == said


def test_the_details_of_a_node_name_what_is_absent() -> None:
    inventory = Inventory(
        profile="p", arch="a", os="o", cpu_count=1, memory_bytes=1000, disk_bytes=1,
        absent=("battery",),
    )  # fmt: skip
    shown = text(draw.node_details(view(inventory, load=LOAD, warnings=("No PSI.",))))
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines() if line.strip())
    assert rows["absent"].strip() == "battery"
    assert rows["battery"].strip() == "-"
    assert rows["throttled"].strip() == "-"
    assert rows["warning"].strip() == "No PSI."


def test_every_option_of_a_task_stands_with_its_figures_and_how_they_are_known() -> None:
    rows = (
        Weighed("n1", "", "wasm", "", 30.0, "measured", 12, 3.0, "form", 1 << 20, 2.0, 40.0,
                why="costs 30.0 ms more"),
        Weighed("n1", "graph", "onnx", "GPU", 3.0, "measured", 0, 90.0, "process", 1 << 24, 1.0,
                10.0, chosen=True),
        Weighed("n2", "graph", "onnx", "", 9.0, "declared", why="has no onnx executor"),
    )  # fmt: skip
    own, graph, other = text(options_table(rows)).splitlines()[-3:]
    assert ("12 runs" in own, "3.0 from form" in own) == (True, True)
    assert "costs 30.0 ms more" in own
    assert ("onnx, GPU" in graph, "in a calibration" in graph) == (True, True)
    assert graph.rstrip().endswith("chosen")
    assert "declared" in other
    assert "- " in other, "what cannot run has no total"
    assert "has no onnx executor" in other


def test_what_the_feeds_of_a_node_left_out_is_shown() -> None:
    report = link(feed_thinned=7, feed_replaced=2)
    shown = " ".join(text(draw.node_details(view(link=report))).split())
    assert "feeds 7 values too fast, 2 gave way to newer ones" in shown


def test_what_the_broker_refuses_of_a_node_is_shown() -> None:
    said = "tona/1/cell/node/n1/status: not authorized (code 0x87), 3 refused in all"
    shown = " ".join(text(draw.node_details(view(link=link(refused=said)))).split())
    assert f"refused by broker {said}" in shown
    assert "refused by broker - " in " ".join(text(draw.node_details(view(link=link()))).split())
