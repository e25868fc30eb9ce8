"""Errors as RFC 9457 problem JSON: one shape for every one of them, and its documentation in OpenAPI.

It knows HTTP and the family of errors, not the routes. Nothing of a request is echoed but the names of its fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from streamlearn.errors import SearchError

MEDIA_TYPE = "application/problem+json"

# The closed set of `type`s; any other status is "about:blank", which RFC 9457 reads as "what the status says".
_NAMES = {
    400: "invalid-json",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    409: "conflict",
    413: "body-too-large",
    415: "not-json",
    422: "invalid-request",
    429: "too-many-searches",
    500: "internal-error",
    503: "not-ready",
}


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str = Field(description="Dotted name, such as query.text.")
    remedy: str = Field(description="What would be right.")


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(description="urn:streamlearn:problem: and a name; fit for a program to branch on.")
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = Field([], description="For an invalid request: field by field.")


def problem_response(
    status: int,
    detail: str,
    *,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make the response.

    Args:
        status: HTTP status; it also picks `type` and `title`.
        detail: a sentence for the one who sent the request.
        errors: field by field, where fields are to blame.
        headers: more of them.
    """
    body: dict[str, Any] = {
        "type": f"urn:streamlearn:problem:{_NAMES[status]}" if status in _NAMES else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if errors:
        body["errors"] = [error.model_dump() for error in errors]
    # json escapes what is not ASCII: a field's name may hold what UTF-8 cannot.
    return Response(
        json.dumps(body), status, {"Cache-Control": "no-store", **(headers or {})}, media_type=f"{MEDIA_TYPE}"
    )


def install(app: FastAPI) -> None:
    """Answer every error of `app` as a problem."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(SearchError, _search)
    # Starlette raises the error again once this is sent, so that the server logs its traceback; clients see none of it.
    app.add_exception_handler(Exception, _unexpected)


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """Name the media type of the problems in an OpenAPI schema; FastAPI takes them for plain JSON."""
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if status >= "400" and "application/json" in content:
                    content[MEDIA_TYPE] = content.pop("application/json")
    return schema


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares for these statuses."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if detail == HTTPStatus(error.status_code).phrase:  # the framework's own words
        detail = f"{request.method} {request.url.path}: {detail.lower()}; /openapi.json lists what there is."
    return problem_response(error.status_code, detail, headers=error.headers)


async def _search(request: Request, error: Exception) -> Response:
    assert isinstance(error, SearchError)
    later = {} if error.retry_after_s is None else {"Retry-After": str(math.ceil(error.retry_after_s))}
    return problem_response(error.status, str(error), headers=later)


async def _unexpected(request: Request, error: Exception) -> Response:
    return problem_response(500, "This is our fault, not yours; the daemon's log tells more.")


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if any(e["type"] == "json_invalid" for e in errors):
        position, reason = errors[0]["loc"][-1], errors[0].get("ctx", {}).get("error", "syntax")
        return problem_response(400, f"The body is not JSON: {reason} at character {position}.")
    content_type = request.headers.get("content-type", "")
    if any(tuple(e["loc"]) == ("body",) for e in errors) and "json" not in content_type.lower():
        return problem_response(415, "Send a JSON body with the header Content-Type: application/json.")
    fields = [_field(e) for e in errors]
    detail = "; ".join(f"{f.field}: {f.remedy}" for f in fields[:3])
    return problem_response(422, detail, errors=fields)


def _field(error: Mapping[str, Any]) -> FieldProblem:
    where = ".".join(str(part) for part in error["loc"][1:]) or "body"
    match error["type"]:
        case "missing":
            remedy = "is required; add it"
        case "extra_forbidden":
            remedy = "is not known here; remove it, or look up its spelling in /openapi.json"
        case "model_attributes_type" | "model_type" | "dict_type":
            remedy = "must be a JSON object"
        case "value_error":
            remedy = str(error["ctx"]["error"])
        case _:
            message = str(error["msg"])
            remedy = message[:1].lower() + message[1:]
    return FieldProblem(field=where, remedy=remedy)
