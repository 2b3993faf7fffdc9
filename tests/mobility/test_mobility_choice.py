"""The choice of a cell: what is weighed, what is prepared ahead, and that nothing flaps."""

from hypothesis import given
from hypothesis import strategies as st

from controller.mobility.choice import Kind, Side, Situation, decide
from controller.mobility.control import Known, MobilityControl
from controller.mobility.settings import BETTER, NEAR, RADIO, MobilitySettings
from protocols.messages.mobility import FLOOR_DB, CellMeasure, Measurement

SETTINGS = MobilitySettings()
LEVELS = st.floats(-115, -50)
TRENDS = st.floats(-30, 30)
SHARES = st.floats(0, 1.2)
USES = st.none() | st.floats(0, 20)


def sides(name: str) -> st.SearchStrategy[Side]:
    return st.builds(
        Side, st.just(name), LEVELS, TRENDS, SHARES, USES, st.sampled_from(["", "it is full"])
    )


SITUATIONS = st.builds(
    Situation,
    sides("here"),
    st.tuples(sides("a"), sides("b"), sides("c")),
    st.dictionaries(st.sampled_from("abc"), st.none() | st.floats(0, 20)),
    near=st.booleans(),
)


@given(SITUATIONS)
def test_a_decision_rests_on_its_situation_alone_and_keeps_its_rules(situation: Situation) -> None:
    decision = decide(situation, SETTINGS)
    assert decision == decide(situation, SETTINGS)
    refusing = {one.cell for one in situation.targets if one.refuses}
    assert not set(decision.targets) & refusing
    assert len(decision.targets) == (1 if decision.kind is Kind.HANDOVER else len(decision.targets))
    assert (decision.kind is Kind.STAY) == (not decision.targets)
    assert (decision.condition is not None) == (decision.kind is Kind.CONDITIONAL)
    assert len(decision.targets) <= SETTINGS.conditional_max


def test_load_and_tasks_weigh_against_the_signal() -> None:
    here = Side("here", -100.0, use=0.8)
    strong = Side("strong", -94.0, load=1.0, use=0.8)
    free = Side("free", -96.0, use=0.8)
    assert decide(Situation(here, (strong, free), {}), SETTINGS).targets == ("free",)
    slow = Side("strong", -94.0, use=3.2)
    assert decide(Situation(here, (slow, free), {}), SETTINGS).targets == ("free",)
    unbothered = Side("strong", -94.0, use=0.4)
    assert decide(Situation(here, (unbothered, free), {}), SETTINGS).targets == ("strong",)


def test_a_dying_link_takes_what_there_is() -> None:
    here = Side("here", RADIO.dead_db - 1.0)
    full = Side("there", -110.0, load=1.0, use=5.0)
    assert decide(Situation(here, (full,), {"there": None}), SETTINGS).targets == ("there",)


def test_who_falls_too_fast_is_prepared_ahead() -> None:
    slow = Situation(Side("here", -90.0, -1.0), (Side("there", -90.0, 1.0),), {}, near=True)
    assert decide(slow, SETTINGS).kind is Kind.STAY
    fast = Situation(Side("here", -90.0, -12.0), (Side("there", -90.0, 6.0),), {}, near=True)
    decision = decide(fast, SETTINGS)
    assert decision.kind is Kind.CONDITIONAL
    assert decision.targets == ("there",)
    never = MobilitySettings(conditional=False)
    assert decide(fast, never).kind is Kind.STAY


def measurement(here: str, levels: dict[str, float], rule: int = BETTER) -> Measurement:
    found = {cell: CellMeasure(cell, level_db=level) for cell, level in levels.items()}
    serving = found.pop(here, CellMeasure(here))
    return Measurement(
        "a3", serving, tuple(found.values()), rule=rule, holding=tuple(found), radio=True
    )


@given(st.lists(st.tuples(LEVELS, LEVELS), max_size=150), st.sampled_from([250, 1000, 2600]))
def test_ping_pongs_are_bounded_whatever_the_levels_do(
    walk: list[tuple[float, float]], step_ms: int
) -> None:
    control = MobilityControl(SETTINGS)
    known = {"a": Known(), "b": Known()}
    here, back, moves = "a", [], 0
    for number, (one, other) in enumerate(walk):
        now_ms = number * step_ms
        report = measurement(here, {"a": one, "b": other})
        decision = control.reported("node", report, known, now_ms)
        if decision.kind is Kind.HANDOVER:
            move = control.moved("node", here, decision.targets[0], now_ms)
            here = decision.targets[0]
            moves += 1
            if move.back:
                back.append(now_ms)
    for at_ms in back:
        window = [one for one in back if at_ms - SETTINGS.window_ms < one <= at_ms]
        assert len(window) <= SETTINGS.ping_pongs_max
    assert (control.tally.moves, control.tally.ping_pongs) == (moves, len(back))


def test_a_return_costs_more_each_time() -> None:
    control = MobilityControl(SETTINGS)
    known = {"a": Known(), "b": Known()}
    control.moved("node", "a", "b", 0)
    weak = measurement("b", {"a": -96.0 + SETTINGS.back_db - 0.5, "b": -98.0})
    assert control.reported("node", weak, known, 1000).kind is Kind.STAY
    assert control.reported("node", weak, known, SETTINGS.back_ms).kind is Kind.HANDOVER


def test_one_handover_at_a_time_and_failed_targets_rest() -> None:
    control = MobilityControl(SETTINGS)
    known = {"a": Known(), "b": Known()}
    better = measurement("a", {"a": -100.0, "b": -90.0})
    assert control.reported("node", better, known, 0).kind is Kind.HANDOVER
    assert control.reported("node", better, known, 100).kind is Kind.STAY
    control.failed("node", "b", 200)
    assert "failed" in control.reported("node", better, known, 300).reason
    assert control.reported("node", better, known, 200 + SETTINGS.bar_ms).kind is Kind.HANDOVER
    control.failed("node", "b", 3000)
    again_ms = 3000 + SETTINGS.bar_ms
    assert control.reported("node", better, known, again_ms).kind is Kind.STAY


def test_a_cell_that_nobody_knows_is_no_target() -> None:
    control = MobilityControl(SETTINGS)
    report = measurement("a", {"a": FLOOR_DB, "forged": -50.0})
    decision = control.reported("node", report, {"a": Known()}, 0)
    assert decision.kind is Kind.STAY
    assert "no neighbour" in decision.reason


def test_what_is_prepared_moves_by_itself() -> None:
    control = MobilityControl(SETTINGS)
    known = {"a": Known(), "b": Known()}
    falling = Measurement(
        "a3",
        CellMeasure("a", level_db=-90.0, trend_db_per_s=-12.0),
        (CellMeasure("b", level_db=-90.0, trend_db_per_s=6.0),),
        rule=NEAR,
        holding=("b",),
        radio=True,
    )
    assert control.reported("node", falling, known, 0).kind is Kind.CONDITIONAL
    assert control.reported("node", falling, known, 200).kind is Kind.STAY
    better = measurement("a", {"a": -100.0, "b": -90.0})
    assert control.reported("node", better, known, 400).kind is Kind.STAY
    control.void("node")
    assert control.reported("node", better, known, 600).kind is Kind.HANDOVER


def test_nodes_of_which_nothing_is_heard_are_dropped() -> None:
    control = MobilityControl(SETTINGS)
    control.moved("node", "a", "b", 0)
    control.sweep(SETTINGS.window_ms + 1)
    assert control.ping_pongs("node", SETTINGS.window_ms + 1) == 0
    assert control.prepared("node") == ()
