"""Markdown of control's HTTP API, from the OpenAPI document that control itself serves."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
from cli_reference import text

from control.problems import CODES
from control.web import openapi
from control.web.routes import OPERATIONS

Json = dict[str, Any]
LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "characters: at least {}",
    "maxLength": "characters: at most {}",
    "minItems": "items: at least {}",
    "maxItems": "items: at most {}",
    "pattern": "matches `{}`",
}


def document() -> Json:
    """The OpenAPI document, as `/openapi.json` of a running control has it."""
    made: Json = msgspec.json.decode(msgspec.json.encode(openapi.document(OPERATIONS)))
    return made


def markdown() -> str:
    described = document()
    lines = ["## Calls", ""]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            lines += [f"### {method.upper()} {path}", "", *_operation(operation), ""]
    lines += ["## Types", ""]
    for name, schema in sorted(described["components"]["schemas"].items()):
        lines += [f"### {name}", "", *_type(schema), ""]
    return "\n".join(lines)


def _operation(operation: Json) -> Iterator[str]:
    summary = operation["summary"] + ("" if operation["summary"].endswith("?") else ".")
    yield from (f"{text(summary)} {text(operation.get('description', 'For: everybody.'))}", "")
    for parameter in operation.get("parameters", ()):
        required = "required, " if parameter.get("required") else ""
        more = f". {text(parameter['description'])}" if "description" in parameter else ""
        yield f"- {parameter['in']} `{parameter['name']}`: {required}{kind(parameter['schema'])}{more}"
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"- body: `{media}`{_content(content)}"
    for status, response in operation["responses"].items():
        contents = response.get("content", {})
        if "application/problem+json" in contents or int(status) >= 400:
            yield f"- {status}: {', '.join(map(_code, response['description'].split(', ')))}"
        else:
            told = "; ".join(f"`{media}`{_content(content)}" for media, content in contents.items())
            yield f"- {status}: {told or text(response['description'].lower())}"


def _code(code: str) -> str:
    """A link to the code's entry in errors.md."""
    return f"[`{code}`](../errors.md#{code})" if code in CODES else text(code)


def _content(content: Json) -> str:
    return f", {kind(content['schema'])}" if "schema" in content else ""


def _type(schema: Json) -> Iterator[str]:
    if "description" in schema:
        yield from (text(" ".join(schema["description"].split())), "")
    if "properties" not in schema:
        yield kind(schema)
    for name, field in schema.get("properties", {}).items():
        required = "required, " if name in schema.get("required", ()) else ""
        more = f". {text(' '.join(field['description'].split()))}" if "description" in field else ""
        yield f"- `{name}`: {required}{kind(field)}{more}"


def kind(schema: Json) -> str:
    """A schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(map(kind, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        found = " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        found = f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    elif schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        found = f"object of {kind(schema['additionalProperties'])} by name"
    else:
        found = schema.get("format") or schema.get("type", "any value")
    limits = [words.format(schema[limit]) for limit, words in LIMITS.items() if limit in schema]
    if "default" in schema:
        limits.append(f"default `{json.dumps(schema['default'])}`")
    return f"{found} ({', '.join(limits)})" if limits else str(found)
