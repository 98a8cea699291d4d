"""The description of the interface (OpenAPI), true to what is read and answered."""

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from foveal.files import to_json
from foveal.serving.access import OPEN_PATHS
from foveal.serving.answers import ProblemAnswer
from foveal.serving.problems import KINDS, PROBLEM_TYPE, RETRY_AFTER_SECONDS
from foveal.serving.uploads import IMAGE_PART

_BYTES = {"type": "string", "format": "binary"}
_WHERE = "#/components/schemas/"

PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One or several images in a form, or one image as the body.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [IMAGE_PART],
                    "additionalProperties": False,
                    "properties": {
                        IMAGE_PART: {
                            "type": "array",
                            "items": _BYTES,
                            "minItems": 1,
                            "description": "Image files; the part is repeated for several.",
                        }
                    },
                }
            },
            "image/*": {"schema": _BYTES},
            "application/octet-stream": {"schema": _BYTES},
        },
    }
}


@dataclass(frozen=True, slots=True)
class Description:
    """The interface.

    Attributes:
        tree: the OpenAPI document.
        json: the same, as it is sent.
    """

    tree: dict[str, Any]
    json: bytes


def problems_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How an operation refuses, for FastAPI's `responses`."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        codes = [code for code, (of_code, _) in KINDS.items() if of_code == status]
        found[status] = {
            "description": "; ".join(KINDS[code][1] for code in codes) + ".",
            "content": {PROBLEM_TYPE: {"schema": {"$ref": f"{_WHERE}{ProblemAnswer.__name__}"}}},
        }
        if any(code in RETRY_AFTER_SECONDS for code in codes):
            found[status]["headers"] = {
                "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}
            }
    return found


def describe(app: FastAPI, *, needs_token: bool) -> Description:
    """The OpenAPI document of an app.

    Args:
        app: with all its routes.
        needs_token: whether clients must send one.
    """
    tree = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    schemas = tree.setdefault("components", {}).setdefault("schemas", {})
    schemas[ProblemAnswer.__name__] = ProblemAnswer.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if needs_token:
        tree["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in tree["paths"].items():
        for operation in operations.values():
            if needs_token and path not in OPEN_PATHS:
                operation["security"] = [{"token": []}]
            else:
                operation["responses"].pop("401", None)
    return Description(tree, to_json(tree).encode("utf-8"))
