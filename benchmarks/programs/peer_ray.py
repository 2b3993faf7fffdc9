"""A Ray cluster of one worker and its driver, for `benchmarks.dispatch`."""

import ray
from peer_lines import serve


@ray.remote
def echo(value: str) -> str:
    """Return the value."""
    return value


def one(value: str) -> object:
    """Have one task run."""
    return ray.get(echo.remote(value))


def many(values: list[str]) -> list[object]:
    """Have many run."""
    return list(ray.get([echo.remote(value) for value in values]))


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve(one, many)
    ray.shutdown()
