"""A Celery client for `benchmarks.dispatch`; see `celery_app` for its environment."""

from celery import group
from celery_app import echo
from peer_lines import serve

TIMEOUT_S = 900


def one(value: str) -> object:
    """Have one task run."""
    return echo.delay(value).get(timeout=TIMEOUT_S)


def many(values: list[str]) -> list[object]:
    """Have many run, submitted as one group."""
    return list(group(echo.s(value) for value in values).apply_async().get(timeout=TIMEOUT_S))


if __name__ == "__main__":
    serve(one, many)
