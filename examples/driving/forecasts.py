"""How good forecasts of the road's speeds are, beside what needs no training.

    python examples/driving/forecasts.py      the table, for the committed forecaster

Errors are mean absolute errors in mph over all detectors and the last fifth of the week; where
nothing was measured (0) nothing is judged.
"""

import sys
from collections.abc import Mapping
from typing import Final

import numpy as np
from material import HOUR_ROWS, minute_of_week, speeds, traffic_request
from reference import TRAFFIC, Array, Runner, load

AHEAD: Final = 12
"""Rows that are forecast."""
HORIZONS: Final = {15: 2, 30: 5, 60: 11}
"""Minutes ahead, and which of the rows that is."""
HELD_OUT: Final = 0.8
"""What comes after this part of the rows is for judging alone."""
DAY_ROWS: Final = 288
WEEKEND_FROM: Final = 5 * 1440
SCALE_MPH: Final = 10.0


def held_out_from(table: Array) -> int:
    """Return the first row that no training has seen."""
    return int(len(table) * HELD_OUT)


def judged_rows(table: Array) -> range:
    """Return the last rows of the hours that are judged: all they forecast is held out."""
    return range(held_out_from(table) - 1, len(table) - AHEAD)


def futures(table: Array, rows: range) -> Array:
    """Return what came, float32[hours, detectors, 12] in mph; nan where nothing was measured."""
    came = np.stack([table[row + 1 : row + 1 + AHEAD].T for row in rows])
    return np.where(came > 0, came, np.float32(np.nan))


def errors(forecast: Array, came: Array) -> dict[int, float]:
    """Return the mean absolute error at each horizon, mph."""
    missed = np.abs(forecast - came)
    return {minutes: float(np.nanmean(missed[..., at])) for minutes, at in HORIZONS.items()}


def persistence(table: Array, rows: range) -> Array:
    """Forecast that the last measured speed of the hour stays; float32[hours, detectors, 12]."""
    last = np.stack([_last_measured(table[row - HOUR_ROWS + 1 : row + 1]) for row in rows])
    return np.repeat(last[:, :, None], AHEAD, axis=2)


def _last_measured(hour: Array) -> Array:
    measured = hour > 0
    newest = len(hour) - 1 - np.argmax(measured[::-1], axis=0)
    last = hour[newest, np.arange(hour.shape[1])]
    return np.where(measured.any(axis=0), last, np.float32(np.nan))


def historical(table: Array, rows: range, kinds: bool) -> Array:
    """Forecast the mean of the training days at that time; float32[hours, detectors, 12].

    `kinds`: of days of the same kind alone, weekday or weekend.
    """
    end = held_out_from(table)
    known = np.where(table[:end] > 0, table[:end], np.nan)
    weekend = np.array([minute_of_week(row) >= WEEKEND_FROM for row in range(len(table))])
    mean = {}
    for kind in (False, True):
        for slot in range(DAY_ROWS):
            taken = np.arange(slot, end, DAY_ROWS)
            if kinds:
                taken = taken[weekend[taken] == kind]
            mean[kind, slot] = np.nanmean(known[taken], axis=0)
    return np.stack(
        [
            np.stack(
                [mean[bool(weekend[at]), at % DAY_ROWS] for at in range(row + 1, row + 1 + AHEAD)]
            )
            for row in rows
        ]
    ).transpose(0, 2, 1)


def forecaster(runner: Runner, table: Array, rows: range) -> Array:
    """Forecast with the whole service; float32[hours, detectors, 12]."""
    return np.stack([runner.run(traffic_request(table, row))["mph"] for row in rows])


def baselines(table: Array, rows: range) -> dict[str, Array]:
    """Return the forecasts that need no training, by name."""
    return {
        "last value": persistence(table, rows),
        "mean at that time of day": historical(table, rows, kinds=False),
        "the same, weekday or weekend": historical(table, rows, kinds=True),
    }


def printed(forecasts: Mapping[str, Array], came: Array) -> str:
    """Return the table of errors."""
    heads = "".join(f"{f'{minutes} min':>9}" for minutes in HORIZONS)
    lines = [f"{'mean absolute error, mph':<30}{heads}"]
    for name, forecast in forecasts.items():
        values = "".join(f"{value:>9.2f}" for value in errors(forecast, came).values())
        lines.append(f"{name:<30}{values}")
    return "\n".join(lines)


def main() -> int:
    """Print the table."""
    table = speeds()
    rows = judged_rows(table)
    forecasts = baselines(table, rows)
    forecasts["forecaster"] = forecaster(Runner(load(TRAFFIC)), table, rows)
    print(printed(forecasts, futures(table, rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
