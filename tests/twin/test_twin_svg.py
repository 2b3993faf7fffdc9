"""Pictures: well-formed whatever is written in them, gaps, marks, values beyond the top."""

import xml.etree.ElementTree as ET

from controller.twin.svg import LONGEST_NOTE, PANEL, Chart, Line, Mark, Panel

SPACE = "{http://www.w3.org/2000/svg}"


def drawn(*lines: Line, marks: tuple[Mark, ...] = (), top: float | None = None) -> ET.Element:
    chart = Chart("a < b & c", "s", [Panel("p", lines, 2.0, top)], (0.0, 10.0), marks)
    return ET.fromstring(chart.svg())  # noqa: S314 - our own


def test_a_gap_parts_a_curve() -> None:
    root = drawn(Line("x", [(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, 1.0)]))
    assert len(root.findall(f"{SPACE}polyline")) == 2


def test_marks_are_numbered_and_told_and_cut_to_the_picture() -> None:
    root = drawn(Line("x", [(0, 1.0)]), marks=(Mark(3.0, "cause <1>"), Mark(4.0, "y" * 500)))
    texts = [one.text or "" for one in root.findall(f"{SPACE}text")]
    assert {"1", "2", "1: 3.0, cause <1>"} <= set(texts)
    assert max(len(one) for one in texts) == LONGEST_NOTE


def test_what_is_beyond_the_top_stays_inside_the_panel() -> None:
    root = drawn(Line("x", [(0, 1.0), (1, 900.0)]), top=3.0)
    [curve] = root.findall(f"{SPACE}polyline")
    ys = [float(one.split(",")[1]) for one in curve.attrib["points"].split()]
    assert max(ys) - min(ys) < PANEL


def test_nothing_at_all_can_be_drawn() -> None:
    assert drawn(Line("x", [])).tag == f"{SPACE}svg"
