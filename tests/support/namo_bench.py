"""NAMO run the way a host does, and documents for it."""

from typing import Any

import msgspec
from msgspec import Struct

from controller.decider import Called, Fired, Linked, Output, Received, Record
from controller.namo.decider import Namo
from controller.records import (
    APPROVAL,
    SERVICE,
    USE_CASE,
    ApprovalRecord,
    ServiceRecord,
    UseCaseRecord,
)
from protocols.messages import AnchorSummary, Body, ServiceReport
from protocols.messages.hierarchy import ServiceState

DIGEST = "sha256:" + "ef" * 32
BYTES = {"dtype": "uint8", "shape": [-1]}
MIB = 1 << 20


class Submit(Struct):
    document: str
    format: str = "json"
    dry_run: bool = False


class Delete(Struct):
    name: str


Decide = Delete


def step(name: str, source: str = "request.x", **more: Any) -> dict[str, Any]:
    """Return a task of one input and one output."""
    fed = {"from": source, **BYTES} if source.startswith("request.") else source
    return {
        "name": name,
        "executor": "wasm",
        "artifact": DIGEST,
        "artifact_bytes": 10,
        "inputs": {"x": fed},
        "outputs": {"y": BYTES},
        **more,
    }


def chain(*names: str, **more: Any) -> list[dict[str, Any]]:
    """Return tasks in a row."""
    return [
        step(name, f"{names[at - 1]}.y" if at else "request.x", **more)
        for at, name in enumerate(names)
    ]


def a_service(tasks: list[dict[str, Any]], name: str = "a", **more: Any) -> dict[str, Any]:
    """Return a service whose answer is that of its last task."""
    outputs = {"y": f"{tasks[-1]['name']}.y"}
    return {"name": name, "kind": "inference", "tasks": tasks, "outputs": outputs, **more}


def a_document(*services: dict[str, Any], name: str = "u", **more: Any) -> str:
    """Return a use case as JSON."""
    return msgspec.json.encode({"name": name, "services": services, **more}).decode()


def summary(anchor: str = "ta-main", **more: Any) -> AnchorSummary:
    """Return an anchor of four idle nodes."""
    given = {
        "side": "core",
        "cells": (f"cell-{anchor}",),
        "nodes": 4,
        "cpu_count": 16,
        "cpu_percent": 10.0,
        "task_memory_free_bytes": 4096 * MIB,
        "largest_free_bytes": 1024 * MIB,
        "round_trip_ms": 0.5,
        "executors": {"wasm": 4, "onnx": 4},
    }
    return AnchorSummary(anchor, **{**given, **more})


class Host:
    """Runs one decider the way a host does: records are kept, timers and messages collected."""

    def __init__(self, *, secured: bool = False) -> None:
        self.secured = secured
        self.namo = Namo(secured=secured)
        self.records: dict[tuple[str, str], Record] = {}
        self.timers: dict[str, int] = {}
        self.calls = 0
        self.now_ms = 0

    def take(self, out: Output) -> Output:
        for record in out.records:
            if record.value is None:
                self.records.pop((record.kind, record.key), None)
            else:
                self.records[record.kind, record.key] = record
        for timer in out.timers:
            if timer.at_ms is None:
                self.timers.pop(timer.key, None)
            else:
                self.timers[timer.key] = timer.at_ms
        return out

    def call(self, operation: str, arguments: Struct, tenant: str = "default") -> Output:
        self.calls += 1
        event = Called(f"c{self.calls}", operation, arguments, tenant, "by-hand", 77)
        return self.take(self.namo.handle([event], self.now_ms))

    def submit(self, *services: dict[str, Any], **more: Any) -> Output:
        out = self.call("usecase.submit", Submit(a_document(*services, **more)))
        assert not out.answers[0].error, out.answers[0].error
        return out

    def hear(self, body: Body, sender: str = "ta-main") -> Output:
        event = Received(sender, 1, 1, "default", "heard", body)
        return self.take(self.namo.handle([event], self.now_ms))

    def linked(self, role: str) -> Output:
        return self.take(self.namo.handle([Linked(role)], self.now_ms))

    def report(
        self,
        service: str,
        generation: int,
        state: ServiceState,
        sender: str = "ta-main",
        epoch_high: int = 0,
    ) -> Output:
        body = ServiceReport(service, generation, state, f"{service} is {state}", epoch_high)
        return self.hear(body, sender)

    def runs(self, service: str = "a", epoch_high: int = 0) -> Output:
        """Have the anchor of a service report that its newest order runs."""
        record = self.service(service)
        return self.report(
            service, record.order.generation, ServiceState.RUNNING, record.anchor, epoch_high
        )

    def fire(self) -> Output:
        key, self.now_ms = min(self.timers.items(), key=lambda one: one[1])
        del self.timers[key]
        return self.take(self.namo.handle([Fired(key)], self.now_ms))

    def pass_time(self, span_ms: int) -> list[Output]:
        """Fire whatever is due within a span."""
        end_ms = self.now_ms + span_ms
        outs = []
        while self.timers and min(self.timers.values()) <= end_ms:
            outs.append(self.fire())
        self.now_ms = end_ms
        return outs

    def restart(self) -> Output:
        self.namo = Namo(secured=self.secured)
        self.timers = {}
        kept = sorted(self.records.values(), key=lambda one: (one.kind, one.key))
        return self.take(self.namo.restore(kept, self.now_ms))

    def use_case(self, name: str = "u") -> UseCaseRecord:
        value = self.records[USE_CASE, name].value
        assert isinstance(value, UseCaseRecord)
        return value

    def service(self, name: str = "a") -> ServiceRecord:
        value = self.records[SERVICE, name].value
        assert isinstance(value, ServiceRecord)
        return value

    def approvals(self) -> list[ApprovalRecord]:
        found = [one.value for (kind, _), one in self.records.items() if kind == APPROVAL]
        return [one for one in found if isinstance(one, ApprovalRecord)]


def bodies(out: Output) -> list[Body]:
    return [send.body for send in out.sends]
