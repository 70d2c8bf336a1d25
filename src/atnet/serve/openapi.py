"""What a server answers, as an OpenAPI document."""

from typing import Any

from atnet.weights.info import WeightsInfo


def openapi(info: WeightsInfo, version: str, token: bool) -> dict[str, Any]:
    """The document of a server of that network.  token: whether it asks for one."""
    top = {"name": "top", "in": "query", "description": "how many classes", "schema": {"type": "integer", "minimum": 1}}
    error = {"description": "why not", "content": {"application/json": {"schema": _ERROR}}}
    statuses = ("400", "401", "408", "413", "415", "422", "431", "500", "503", "504")
    refusals = {status: error for status in statuses if token or status != "401"}
    guarded: dict[str, Any] = {"security": [{"token": []}] if token else []}
    unauthorised = {"401": error} if token else {}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"AT-Net: {info.model}, {len(info.classes):,} classes", "version": version},
        "paths": {
            "/predict": {
                "post": {
                    "summary": "What an image shows",
                    "parameters": [top],
                    "requestBody": {
                        "required": True,
                        "description": "the image's bytes: JPEG, PNG, WebP, BMP, GIF or TIFF",
                        "content": {"application/octet-stream": {}, "image/*": {}},
                    },
                    "responses": {"200": _json("the likeliest classes, likeliest first", _ANSWER)} | refusals,
                }
                | guarded
            },
            "/metadata": {
                "get": {
                    "summary": "The network: model, classes, preprocessing",
                    "responses": {"200": _json("what the weights say of themselves", {"type": "object"})}
                    | unauthorised,
                }
                | guarded
            },
            "/metrics": {
                "get": {
                    "summary": "Counts and times, in Prometheus' text format",
                    "responses": {"200": {"description": "metrics", "content": {"text/plain": {}}}} | unauthorised,
                }
                | guarded
            },
            "/healthz": {
                "get": {
                    "summary": "Whether the server lives",
                    "responses": {"200": _json("it does", {"type": "object"})},
                }
            },
        },
    }
    if token:
        document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return document


def _json(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT: dict[str, Any] = {"type": "string"}
_ERROR = _object(error=_TEXT)
_CLASS = _object(name=_TEXT, probability={"type": "number", "minimum": 0, "maximum": 1}, **{"class": _TEXT})
_ANSWER = _object(top={"type": "array", "items": _CLASS}, milliseconds={"type": "number"})
