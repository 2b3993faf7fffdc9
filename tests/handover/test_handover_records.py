"""What a handover makes durable survives the store."""

from cells_bench import CellsBench

from controller.store.kinds import TYPES, decode, encode


def test_every_record_of_a_handover_can_be_stored() -> None:
    bench = CellsBench("a", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    bench.hand_over("n", "b")
    bench.moves("n", "b")
    kinds = {kind for kind, _ in bench.store}
    assert {"handover", "crossing", "point"} <= kinds <= TYPES.keys()
    for (kind, key), record in bench.store.items():
        assert record.value is not None
        assert decode(kind, key, encode(kind, record.value)) == record.value


def test_an_anchor_that_begins_anew_knows_the_cells() -> None:
    bench = CellsBench("a", "b")
    bench.start("ta")
    bench.born("n", "a")
    bench.passes(1000, "n")
    bench.hand_over("n", "b")
    assert not bench.answers[-1].error
