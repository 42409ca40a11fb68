"""The routes as OpenAPI tells them, and as a page that needs nothing but itself."""

import html
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


class Failure(BaseModel):
    """Every answer that is not what was asked for."""

    error: str


_REASONS = {
    400: "the request or its body is not what it has to be",
    404: "no such model or version",
    408: "the body took too long",
    413: "the body is too large",
    415: "a compressed body, or a form",
    500: "the model failed",
    503: "the server is busy, or stops",
}
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": reason} for status, reason in _REASONS.items()
}
_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

# Arguments of the routes. "4XX" keeps out the 422 that FastAPI declares and this server does not use.
_ANY_OTHER: dict[int | str, dict[str, Any]] = {"4XX": {"model": Failure, "description": "any other mistake"}}
NO_MODEL = {404: _FAILURES[404], **_ANY_OTHER}
INFER: dict[str, Any] = {
    "responses": {200: {"content": {**_JSON_OBJECT, **_BINARY}}, **_FAILURES, **_ANY_OTHER},
    "openapi_extra": {"requestBody": {"required": True, "content": {**_JSON_OBJECT, **_BINARY}}},
}


def image_route(answer: type[BaseModel]) -> dict[str, Any]:
    """Of a route that takes an image file."""
    return {
        "responses": {200: {"model": answer}, **_FAILURES, **_ANY_OTHER},
        "openapi_extra": {"requestBody": {"required": True, "content": _BINARY}},
    }


def page(openapi: Mapping[str, Any]) -> str:
    """HTML without scripts, styles or fonts from elsewhere: a server may be far from the internet."""
    rows = [
        f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code><td>{html.escape(_text(operation))}"
        f"<td>{html.escape(', '.join(operation['responses']))}"
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    title = html.escape(f"{openapi['info']['title']} {openapi['info']['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"
        '<p>The Open Inference Protocol v2 and image files; <a href="openapi.json">openapi.json</a> has the details.'
        f"<table><tr><th align=left>Method<th align=left>Path<th align=left>What<th align=left>Statuses{''.join(rows)}"
        "</table>"
    )


def _text(operation: Mapping[str, Any]) -> str:
    parameters = ", ".join(parameter["name"] for parameter in operation.get("parameters", []))
    return operation.get("description") or f"{operation['summary']}" + (f" ({parameters})" if parameters else "")
