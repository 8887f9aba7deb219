"""The OpenAPI 3.1 document of the API, generated from the declared operations."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from control.access.rights import ROLES
from control.api.operations import Operation
from control.api.request_input import path_types
from control.problems import CODES
from control.protocol import wire

REF = "#/components/schemas/{name}"
ALWAYS = ("internal", "method_not_allowed")
WITH_DATABASE = ("database_busy", "database_unavailable", "shutting_down")
WITH_BODY = ("malformed_json", "body_incomplete", "body_timeout", "body_too_large", "unsupported_media_type")


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Make the document that describes these operations, and the poll."""
    types = _types(operations)
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    by_type = {_key(type): schema for type, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation, by_type)
    paths["/v1/poll"] = {"post": _poll(by_type)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Skerry control", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "operator": {"type": "http", "scheme": "bearer", "description": "An operator's token, sko_…"},
                "node": {"type": "http", "scheme": "bearer", "description": "A node's credential, skn_…"},
                "join": {"type": "http", "scheme": "bearer", "description": "A one-time join token, skj_…"},
            },
        },
    }


def _types(operations: Sequence[Operation]) -> list[Any]:
    found: dict[str, Any] = {}
    for operation in operations:
        for type in (operation.body, *operation.answers.values()):
            if type not in (None, bytes, dict):
                found[_key(type)] = type
        for name in _parameters(operation.path):
            found[_key(path_types()[name])] = path_types()[name]
        if operation.query is not None:
            for field in msgspec.structs.fields(operation.query):
                found[_key(field.type)] = field.type
    for type in (wire.Problem, wire.Poll, wire.Answer):
        found[_key(type)] = type
    return list(found.values())


def _key(type: Any) -> str:
    return repr(type)


def _parameters(path: str) -> list[str]:
    return re.findall(r"{([a-z0-9_]+)}", path)


def _operation(operation: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"[^a-z0-9]+", "-", f"{operation.method} {operation.path}".lower()).strip("-"),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": by_type[_key(path_types()[name])]}
            for name in _parameters(operation.path)
        ],
        "responses": _responses(operation, by_type),
    }
    if operation.query is not None:
        for field in msgspec.structs.fields(operation.query):
            schema = {k: v for k, v in by_type[_key(field.type)].items() if k != "default"}
            # An optional parameter can't be sent as null in a URL.
            kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
            schema = kinds[0] if len(kinds) == 1 else schema
            if "enum" in schema:
                schema = {**schema, "enum": [value for value in schema["enum"] if value is not None]}
            described["parameters"].append({"name": field.encode_name, "in": "query", "schema": schema})
    if operation.role is not None:
        scheme = operation.role if operation.role in ("node", "join") else "operator"
        described["security"] = [{scheme: []}]
        everywhere = " for all groups" if operation.role in ROLES and operation.everywhere else ""
        described["description"] = f"For: {operation.role}{everywhere}."
    if operation.method in ("POST", "DELETE") and operation.role in ROLES:
        described["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Asking again with the same key does nothing twice and gets the same answer.",
                "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
            }
        )
    if operation.body is bytes:
        described["requestBody"] = {"required": True, "content": {operation.media: {}}}
    elif operation.body is not None:
        content = {"application/json": {"schema": by_type[_key(operation.body)]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation, by_type: dict[str, Any]) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, type in operation.answers.items():
        responses[str(status)] = {"description": "Done"}
        if type is bytes and operation.method != "HEAD":
            responses[str(status)]["content"] = {operation.media: {}}
        elif type is dict:
            responses[str(status)]["content"] = {"application/json": {"schema": {"type": "object"}}}
        elif type not in (None, bytes):
            responses[str(status)]["content"] = {"application/json": {"schema": by_type[_key(type)]}}
        if status == 307:
            responses["307"]["headers"] = {"location": {"required": True, "schema": {"type": "string"}}}
    codes = [*ALWAYS, *operation.problems]
    if operation.path not in ("/healthz", "/metrics", "/openapi.json"):
        codes += WITH_DATABASE
    if operation.role is not None:
        codes += ["credentials_missing", "credentials_invalid", "role_insufficient"]
    if operation.role == "node":
        codes += ["node_revoked", "node_removed", *([operation.ended] if operation.ended else [])]
    if operation.role in ROLES:
        codes += ["token_expired", "session_ended"]
    if operation.body is not None:
        codes += WITH_BODY
    if operation.body is not None or operation.method in ("POST", "DELETE"):
        codes += ["invalid_body", "malformed_json", "body_too_large", "body_timeout", "body_incomplete"]
        codes += ["too_many_acts"]
    if operation.method in ("POST", "DELETE", "PUT"):
        codes += ["commit_unknown", "idempotency_key_used"]
    codes += ["invalid_parameter"]
    return {**responses, **_problems(codes, by_type, head=operation.method == "HEAD")}


def _problems(codes: Sequence[str], by_type: dict[str, Any], *, head: bool = False) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(CODES[code].status, []).append(code)
    content = {} if head else {"content": {"application/problem+json": {"schema": by_type[_key(wire.Problem)]}}}
    return {
        str(status): {"description": ", ".join(sorted(listed)), **content}
        for status, listed in sorted(by_status.items())
    }


def _poll(by_type: dict[str, Any]) -> dict[str, Any]:
    codes = [
        *ALWAYS,
        *WITH_DATABASE,
        *WITH_BODY,
        "invalid_body",
        "too_many_acts",
        "credentials_missing",
        "credentials_invalid",
    ]
    codes += ["node_revoked", "node_removed", "credential_expired", "role_insufficient", "commit_unknown"]
    codes += ["history_mismatch"]
    return {
        "summary": "Is there something to do? Held while there isn't",
        "operationId": "post-v1-poll",
        "description": "For: node.",
        "security": [{"node": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": by_type[_key(wire.Poll)]}},
        },
        "responses": {
            "200": {
                "description": "A plan, or a wish for the inventory",
                "content": {"application/json": {"schema": by_type[_key(wire.Answer)]}},
            },
            "204": {"description": "At target"},
            **_problems(codes, by_type),
        },
    }
