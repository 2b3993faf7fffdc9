"""Train the forecaster of the road's speeds, from scratch and from a seed.

    python examples/driving/train_forecaster.py

Writes forecaster.onnx, tables/stations.f32 and tables/forecaster.f32, and prints the errors beside
those of forecasts that need no training. It needs the packages numpy and onnx (1.23.2 made the
committed file); on one kind of processor equal inputs give equal files. The last fifth of the week
is seen by no training, and no setting was chosen by it.

The model: for each detector and each of the next 12 rows, the last speed plus a correction by one
small network with the same weights for all detectors. It sees the detector's hour, the mean hour of
those near it by road, what the time of the week lets expect, the time itself, and eight learnt
numbers that tell the detector's nature. Each day of training sees expectations made without it.
"""

import sys
from typing import Final, NamedTuple

import forecaster_weights
import numpy as np
from forecasts import (
    AHEAD,
    DAY_ROWS,
    SCALE_MPH,
    baselines,
    forecaster,
    futures,
    held_out_from,
    judged_rows,
    printed,
)
from material import HOUR_ROWS, SPEEDS, speeds, traffic_request
from reference import HERE, TRAFFIC, Array, Guest, Runner, load

MODEL: Final = HERE / "forecaster.onnx"
STATIONS: Final = HERE / "tables" / "stations.f32"
ADJACENCY: Final = SPEEDS.with_name("los_adj.csv")
OPSET: Final = 17
SEED: Final = 1
HIDDEN: Final = 64
NATURE: Final = 8
BATCH_HOURS: Final = 8
EPOCHS: Final = 20
RATE: Final = 2e-3
DECAY: Final = (0.9, 0.999)
GAP_SHARES: Final = (0.0, 0.05, 0.2)
"""Part of the readings taken away in training, one after another, so that gaps are nothing new."""
RIDGE: Final = 3.0
FREE_FLOW_PERCENTILE: Final = 85

Weights = dict[str, Array]


class Hours(NamedTuple):
    """What the network sees of many hours, and what came."""

    seen: Array
    """float32[hours, detectors, features]."""
    when: Array
    """float32[hours, moments]: the time of the row after the hour."""
    last: Array
    """float32[hours, detectors, 1]."""
    came: Array
    """float32[hours, detectors, 12]; nan where nothing was measured."""


def stations_of(known: Array) -> Array:
    """Return typical and free-flow speed of each detector, float32[detectors, 2], mph."""
    measured = np.where(known > 0, known, np.nan)
    free = np.nanpercentile(measured, FREE_FLOW_PERCENTILE, axis=0)
    return np.stack([np.nanmean(measured, axis=0), free], axis=1).astype(np.float32)


def near_by() -> Array:
    """Return float32[detectors, detectors]: with which weights each one sees those near it."""
    weights = np.loadtxt(ADJACENCY, delimiter=",", dtype=np.float32)
    np.fill_diagonal(weights, 0)
    alone = weights.sum(axis=1) == 0
    weights[alone, alone] = 1
    mean: Array = weights / weights.sum(axis=1, keepdims=True)
    return mean


def expectations(when: Array, speed: Array, days: Array) -> dict[int, Array]:
    """Return what to expect by the time of the week, made without each of the days.

    Each is float32[detectors, moments], by ridge regression; day -1 is made with all of them.
    `speed` is float32[rows, detectors] as (mph - typical) / 10, nan where nothing was measured.
    """
    target = np.where(np.isnan(speed), 0, speed)
    made = {}
    for day in (-1, *np.unique(days)):
        kept = when[days != day]
        square = kept.T @ kept + RIDGE * np.eye(when.shape[1], dtype=np.float32)
        made[int(day)] = np.linalg.solve(square, kept.T @ target[days != day]).T.astype(np.float32)
    return made


def look(x: Array, expected: Array, near: Array) -> Array:
    """Return what the network sees of one hour; `graph` says the same in ONNX."""
    lags, last = x[:, :HOUR_ROWS], x[:, HOUR_ROWS - 1 : HOUR_ROWS]
    return np.concatenate(
        [lags[:, :-1] - last, near @ lags - last, expected - last, x[:, -2:]], axis=1
    )


def hours(table: Array, stations: Array, rows: range, expected: dict[int, Array]) -> Hours:
    """Return the hours that end with these rows; the step `recent` makes what is seen of them."""
    guest, near = Guest(HERE / "modules" / "recent.wasm"), near_by()
    seen, times, last = [], [], []
    for row in rows:
        request = traffic_request(table, row)
        x, when = guest([request["speeds"], request["minute"], stations], 2)
        without = expected.get(row // DAY_ROWS, expected[-1])
        seen.append(look(x, without @ when, near))
        times.append(when[:, 0])
        last.append(x[:, HOUR_ROWS - 1 : HOUR_ROWS])
    typical = stations[:, 0][None, :, None]
    came = (futures(table, rows) - typical) / np.float32(SCALE_MPH)
    return Hours(np.stack(seen), np.stack(times), np.stack(last), came)


def with_gaps(table: Array, share: float, chance: np.random.Generator) -> Array:
    """Return the table with a share of its readings missing."""
    return np.where(chance.random(table.shape) < share, np.float32(0), table)


def fresh(detectors: int, features: int, moments: int, chance: np.random.Generator) -> Weights:
    """Return the network before training."""

    def spread(rows: int, columns: int, scale: float) -> Array:
        return (chance.standard_normal((rows, columns)) * scale).astype(np.float32)

    return {
        "nature": spread(detectors, NATURE, 0.3),
        "w_seen": spread(features, HIDDEN, (2 / features) ** 0.5),
        "w_nature": spread(NATURE, HIDDEN, 0.3),
        "w_when": spread(moments, HIDDEN, 0.1),
        "b_first": np.zeros(HIDDEN, np.float32),
        "w_second": spread(HIDDEN, HIDDEN, (2 / HIDDEN) ** 0.5),
        "b_second": np.zeros(HIDDEN, np.float32),
        "w_last": spread(HIDDEN, AHEAD, 0.02),
        "b_last": np.zeros(AHEAD, np.float32),
    }


def gradients(net: Weights, batch: Hours) -> Weights:
    """Return the gradient of the mean absolute error."""
    first = batch.seen @ net["w_seen"] + net["nature"] @ net["w_nature"] + net["b_first"]
    first = np.maximum(first + (batch.when @ net["w_when"])[:, None], 0)
    second = np.maximum(first @ net["w_second"] + net["b_second"], 0)
    given = batch.last + second @ net["w_last"] + net["b_last"]
    measured = ~np.isnan(batch.came)
    out = np.where(measured, np.sign(given - batch.came), 0).astype(np.float32) / measured.sum()
    to_second = (out @ net["w_last"].T) * (second > 0)
    to_first = (to_second @ net["w_second"].T) * (first > 0)
    of_detectors = to_first.sum(axis=0)
    return {
        "nature": of_detectors @ net["w_nature"].T,
        "w_seen": flat(batch.seen).T @ flat(to_first),
        "w_nature": net["nature"].T @ of_detectors,
        "w_when": batch.when.T @ to_first.sum(axis=1),
        "b_first": flat(to_first).sum(axis=0),
        "w_second": flat(first).T @ flat(to_second),
        "b_second": flat(to_second).sum(axis=0),
        "w_last": flat(second).T @ flat(out),
        "b_last": flat(out).sum(axis=0),
    }


def flat(values: Array) -> Array:
    """Return rows by columns: hours and detectors as one axis."""
    return values.reshape(-1, values.shape[-1])


def train(variants: list[Hours], chance: np.random.Generator) -> Weights:
    """Train on the same hours with few and many gaps in turn (Adam, the rate a falling cosine)."""
    one = variants[0]
    net = fresh(one.seen.shape[1], one.seen.shape[2], one.when.shape[1], chance)
    mean = {name: np.zeros_like(value) for name, value in net.items()}
    square = {name: np.zeros_like(value) for name, value in net.items()}
    batches = len(one.seen) // BATCH_HOURS
    step, steps = 0, EPOCHS * batches
    for epoch in range(EPOCHS):
        order = chance.permutation(len(one.seen))
        source = variants[epoch % len(variants)]
        for at in range(batches):
            taken = order[at * BATCH_HOURS : (at + 1) * BATCH_HOURS]
            rate = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
            step += 1
            found = gradients(net, Hours(*(values[taken] for values in source)))
            for name, slope in found.items():
                mean[name] += (1 - DECAY[0]) * (slope - mean[name])
                square[name] += (1 - DECAY[1]) * (slope * slope - square[name])
                ahead = mean[name] / (1 - DECAY[0] ** step)
                spread = np.sqrt(square[name] / (1 - DECAY[1] ** step)) + 1e-8
                net[name] -= (rate * ahead / spread).astype(np.float32)
    return net


def graph(net: Weights, expected: Array, near: Array) -> bytes:
    """Return the model as ONNX: x float32[detectors,13], when float32[moments,12] -> y."""
    from onnx import TensorProto, checker, helper, numpy_helper  # noqa: PLC0415 - training alone

    detectors, moments = expected.shape
    # What the detector's nature adds is the same for every request.
    values = {
        **{name: net[name] for name in ("w_seen", "w_when", "w_second", "b_second", "w_last")},
        "b_nature": net["nature"] @ net["w_nature"] + net["b_first"],
        "b_last": net["b_last"],
        "near": near,
        "expected": expected,
    }
    whole = {"zero": 0, "lag": HOUR_ROWS - 1, "hour": HOUR_ROWS, "end": HOUR_ROWS + 1, "one": 1}
    lines = """
        lags = Slice x zero hour one
        before = Slice x zero lag one
        last = Slice x lag hour one
        state = Slice x lag end one
        around = MatMul near lags
        usual = MatMul expected when
        fall = Sub before last
        beside = Sub around last
        pull = Sub usual last
        seen = Concat fall beside pull state
        next = Slice when zero one one
        turned = Transpose next
        time = MatMul turned w_when
        own = MatMul seen w_seen
        both = Add own b_nature
        first = Add both time
        awake = Relu first
        deep = MatMul awake w_second
        second = Add deep b_second
        lit = Relu second
        change = MatMul lit w_last
        drift = Add change b_last
        y = Add last drift
    """
    nodes = []
    for line in lines.split("\n"):
        if words := line.split():
            axis = {"axis": 1} if words[2] == "Concat" else {}
            nodes.append(helper.make_node(words[2], words[3:], words[:1], **axis))
    constants = [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in values.items()]
    constants += [numpy_helper.from_array(np.array([v], np.int64), k) for k, v in whole.items()]
    real = TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "forecaster",
        [
            helper.make_tensor_value_info("x", real, [detectors, HOUR_ROWS + 1]),
            helper.make_tensor_value_info("when", real, [moments, AHEAD]),
        ],
        [helper.make_tensor_value_info("y", real, [detectors, AHEAD])],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def made(table: Array, end: int) -> tuple[Array, bytes]:
    """Train on the rows before `end`; returns the table of stations and the model."""
    chance = np.random.default_rng(SEED)
    known = table[:end]
    stations = stations_of(known)
    guest = Guest(HERE / "modules" / "recent.wasm")
    when = np.stack(
        [
            guest([request["speeds"], request["minute"], stations], 2)[1][:, 0]
            for request in (traffic_request(table, row - 1) for row in range(HOUR_ROWS, end))
        ]
    )
    speed = (np.where(known > 0, known, np.nan)[HOUR_ROWS:] - stations[:, 0]) / SCALE_MPH
    days = np.arange(HOUR_ROWS, end) // DAY_ROWS
    expected = expectations(when, speed.astype(np.float32), days)
    rows = range(HOUR_ROWS - 1, end - AHEAD)
    variants = []
    for share in GAP_SHARES:
        gapped = hours(with_gaps(known, share, chance), stations, rows, expected)
        variants.append(gapped)
    # What came is judged as it was measured, whatever was taken away from what is seen.
    variants = [one._replace(came=variants[0].came) for one in variants]
    return stations, graph(train(variants, chance), expected[-1], near_by())


def main() -> int:
    """Train, write and judge."""
    table = speeds()
    stations, model = made(table, held_out_from(table))
    STATIONS.write_bytes(stations.astype("<f4").tobytes())
    MODEL.write_bytes(model)
    forecaster_weights.main()
    rows = judged_rows(table)
    forecasts = baselines(table, rows)
    forecasts["forecaster"] = forecaster(Runner(load(TRAFFIC)), table, rows)
    print(f"{MODEL.name}: {len(model)} bytes")
    print(printed(forecasts, futures(table, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
