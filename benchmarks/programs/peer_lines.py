"""What the clients of `benchmarks.dispatch` share: questions on stdin, answers on stdout, as JSON.

{"one": 500}    ->  {"us": [...]}     one job after another, each from submit to result
{"many": 10000} ->  {"s": 1.5}        all at once, from the first submit to the last result
"""

import json
import sys
import time
from collections.abc import Callable


def serve(one: Callable[[str], object], many: Callable[[list[str]], list[object]]) -> None:
    """Answer until our parent hangs up; every answer is held against what was sent."""
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if "one" in asked:
            times = []
            for at in range(asked["one"]):
                value = f"{at:0100d}"
                began = time.perf_counter_ns()
                if one(value) != value:
                    raise SystemExit("a wrong answer")
                times.append((time.perf_counter_ns() - began) / 1000)
            print(json.dumps({"us": times}), flush=True)
        else:
            values = [f"{at:0100d}" for at in range(asked["many"])]
            began = time.perf_counter_ns()
            if many(values) != values:
                raise SystemExit("a wrong answer")
            print(json.dumps({"s": (time.perf_counter_ns() - began) / 1e9}), flush=True)
