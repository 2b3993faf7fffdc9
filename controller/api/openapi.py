"""The OpenAPI 3.1 description, made from the table of operations. Pure."""

from functools import cache
from typing import Any, Final

import msgspec

from controller.api.arguments import path_names, takes_body
from controller.api.errors import ErrorBody
from controller.api.named import named
from controller.api.operation import Effect, Operation, Transfer
from controller.api.operations import TABLE

_REF: Final = "#/components/schemas/{name}"
_BYTES: Final[dict[str, Any]] = {"application/octet-stream": {}}
_EVENTS: Final = {"text/event-stream": {"schema": {"type": "string"}}}


@cache
def describe() -> dict[str, Any]:
    """Return the description of the whole table."""
    results = [named(one.result) for one in TABLE if one.result is not None]
    arguments = [one.arguments for one in TABLE]
    _, components = msgspec.json.schema_components(
        [*results, *arguments, ErrorBody], ref_template=_REF
    )
    # Types within arguments stay components; the structs themselves are told apart in each call.
    inline = {one.__name__: components.pop(one.__name__) for one in set(arguments)}
    paths: dict[str, dict[str, Any]] = {}
    for one in TABLE:
        fields = inline[one.arguments.__name__]
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, fields)
    for path in [one.path for one in TABLE if one.name in {"artifact.get", "blob.get"}]:
        paths[path]["head"] = {**paths[path]["get"], "operationId": f"{path.split('/')[2]}.head"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tona",
            "version": "1",
            "description": "AI tasks on a fleet of edge devices.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(one: Operation, fields: dict[str, Any]) -> dict[str, Any]:
    in_path = path_names(one)
    properties: dict[str, Any] = fields.get("properties", {})
    required = set(fields.get("required", ()))
    described: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "tags": [one.name.partition(".")[0]],
        "x-permission": one.permission.value,
        "x-plane": one.plane.value,
        "x-effect": one.effect.value,
        "x-idempotent": one.idempotent,
        "x-dry-run": one.dry_run,
        "parameters": [
            {
                "name": name,
                "in": "path" if name in in_path else "query",
                "required": name in in_path or name in required,
                "schema": schema,
            }
            for name, schema in properties.items()
            if name in in_path or not takes_body(one)
        ],
        "responses": _responses(one),
    }
    if takes_body(one):
        left = {name: schema for name, schema in properties.items() if name not in in_path}
        schema = {
            "type": "object",
            "properties": left,
            "required": sorted(required & left.keys()),
            "additionalProperties": False,
        }
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    elif one.transfer is Transfer.BYTES and one.effect is Effect.WRITE:
        described["requestBody"] = {"required": True, "content": _BYTES}
    return described


def _responses(one: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {
        "default": {
            "description": "Why there is no result.",
            "content": {"application/json": {"schema": {"$ref": _REF.format(name="ErrorBody")}}},
        }
    }
    if one.transfer is Transfer.EVENTS:
        responses["200"] = {"description": "`change` and `resync` events.", "content": _EVENTS}
    elif one.result is None:
        responses["200"] = {"description": "The content.", "content": _BYTES}
        responses["206"] = {"description": "The range asked for.", "content": _BYTES}
    else:
        (schema,), _ = msgspec.json.schema_components([named(one.result)], ref_template=_REF)
        responses["200"] = {
            "description": "The result.",
            "content": {"application/json": {"schema": schema}},
        }
    return responses
