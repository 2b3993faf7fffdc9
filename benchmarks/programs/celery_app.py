"""The Celery application of `benchmarks.dispatch`: one task that gives back what it got.

Runs under an interpreter that has Celery, in the worker and in the client; nothing of ours is here.
`DISPATCH_REDIS` is the URL of the Redis, `DISPATCH_DURABLE` says 1 where a task must outlive a
worker.
"""

import os

from celery import Celery

app = Celery("dispatch", broker=os.environ["DISPATCH_REDIS"], backend=os.environ["DISPATCH_REDIS"])
if os.environ["DISPATCH_DURABLE"] == "1":
    app.conf.task_acks_late = True
    app.conf.task_reject_on_worker_lost = True


@app.task
def echo(value: str) -> str:
    """Return the value."""
    return value
