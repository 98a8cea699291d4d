"""The page at /docs: the interface in plain HTML, without a script and without anything from elsewhere."""

import base64
import hashlib
import html
from dataclasses import dataclass
from typing import Any

from foveal.serving.describing import Description
from foveal.serving.gate import CONTENT_POLICY
from foveal.serving.problems import KINDS

_STYLE = """
:root { color-scheme: light dark; background: Canvas; color: CanvasText; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 54rem; margin: 0 auto; padding: 1rem }
table { border-collapse: collapse; margin: .5rem 0 }
th, td { text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid #8886 }
code, pre { font: .9em ui-monospace, monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; border: 1px solid #8886; border-radius: .3rem }
.method { font-weight: 700 }
@media (max-width: 40rem) { td { overflow-wrap: anywhere; padding-right: .5rem } }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode("utf-8")).digest()).decode("ascii")


@dataclass(frozen=True, slots=True)
class ApiPage:
    """The page.

    Attributes:
        html: UTF-8.
        content_policy: the server's, and the hash of the page's one style.
    """

    html: bytes
    content_policy: str


def api_page(description: Description) -> ApiPage:
    """Write the page."""
    tree = description.tree
    operations = [
        _operation(path, method, operation)
        for path, methods in tree["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(tree["components"]["schemas"].items())]
    kinds = "".join(
        f'<tr id="{code}"><td><code>{code}</code></td><td>{status}</td><td>{html.escape(words)}</td></tr>'
        for code, (status, words) in KINDS.items()
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>foveal: the interface</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<h1>foveal {html.escape(tree['info']['version'])}</h1><p>{html.escape(tree['info']['summary'])} "
        'The same for programs: <a href="openapi.json">/openapi.json</a>. <a href="./">To the page.</a></p>'
        f"{''.join(operations)}<h2>Answers</h2>{''.join(schemas)}"
        "<h2>Problems</h2><p>Every refusal is <code>application/problem+json</code> (RFC 9457); the end of its "
        f"<code>type</code> is one of these.</p><table>{_row('th', 'type', 'status', 'meaning')}{kinds}</table>"
        "</main></body></html>"
    )
    policy = CONTENT_POLICY.replace("style-src 'self'", f"style-src 'sha256-{_HASH}'")
    return ApiPage(text.encode("utf-8"), policy)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f'<h2><span class="method">{method.upper()}</span> <code>{html.escape(path)}</code></h2>',
        f"<p>{html.escape(operation.get('summary', ''))}.",
        " Needs the token." if operation.get("security") else "",
        "</p>",
    ]
    if parameters := operation.get("parameters"):
        rows = "".join(
            _row(
                "td",
                f"{each['name']} ({each['in']})",
                str(each["schema"].get("default", "")),
                each.get("description", each["schema"].get("description", "")),
            )
            for each in parameters
        )
        parts.append(f"<table>{_row('th', 'parameter', 'default', 'meaning')}{rows}</table>")
    if body := operation.get("requestBody"):
        parts.append(f"<p>{html.escape(body['description'])} {html.escape(', '.join(body['content']))}.</p>")
        header = " --header 'Authorization: Bearer TOKEN'" if operation.get("security") else ""
        parts.append(f"<pre>curl --form image=@photo.jpg{header} http://127.0.0.1:8000{html.escape(path)}</pre>")
    rows = "".join(
        _row("td", status, ", ".join(answer.get("content", {})), answer["description"])
        for status, answer in sorted(operation["responses"].items())
    )
    parts.append(f"<table>{_row('th', 'status', 'type', 'meaning')}{rows}</table>")

    return "".join(parts)


def _schema(name: str, schema: dict[str, Any]) -> str:
    rows = "".join(
        _row("td", key, _type(value), value.get("description", ""))
        for key, value in schema.get("properties", {}).items()
    )
    head = _row("th", "key", "value", "meaning")
    return f"<h3>{html.escape(name)}</h3><p>{html.escape(schema.get('description', ''))}</p><table>{head}{rows}</table>"


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(each) for each in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "object"))


def _row(kind: str, *cells: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"
