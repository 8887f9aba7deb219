"""Control's settings as they are in force, for people: names, values, where each is from. Secrets are never in it."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from control.settings import ControlSettings

HIDDEN = "(set, and not shown)"


class SettingInForce(Struct):
    """A setting of one replica."""

    name: str
    """The environment variable."""
    value: str
    """As text; '' where it isn't set. Of what has a secret in it, what is none."""
    origin: Literal["environment", "default", "program"]
    """`program`: whatever started the replica has given it, as `skerry up` does."""


def in_force(settings: ControlSettings, environ: Mapping[str, str] | None = None) -> list[SettingInForce]:
    """All settings, by name. `environ`: the environment that they may be from; None: this process's."""
    environ = os.environ if environ is None else environ
    found = []
    for each in fields(settings):
        name, value = f"SKERRY_{each.name.upper()}", getattr(settings, each.name)
        origin: Literal["environment", "default", "program"] = "program"
        if environ.get(name):
            origin = "environment"
        elif value == each.default or (each.default_factory is not MISSING and value == each.default_factory()):
            origin = "default"
        found.append(SettingInForce(name, _text(value) if each.repr else _without_secret(each.name, value), origin))
    return sorted(found, key=lambda setting: setting.name)


def _text(value: Any) -> str:
    """A value as an environment variable has it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _without_secret(name: str, value: Any) -> str:
    """A value that has a secret: of a URL its scheme, host, port and path; of anything else that it is set."""
    if not value:
        return ""
    if not name.endswith("_url") or not isinstance(value, str):
        return HIDDEN
    try:
        parts = urlsplit(value)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return HIDDEN
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
