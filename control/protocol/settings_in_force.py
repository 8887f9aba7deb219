"""Settings as people give and see them: names, values, origins; and variables that look like settings but aren't.

Both packages use it. Secrets are never in it.
"""

import os
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from msgspec import Struct

from control.protocol.setting_names import SETTINGS

HIDDEN = "(set, and not shown)"
Origin = Literal["environment", "default", "program", "flag", "file"]
"""`program`: set by the program that started the process, for instance `skerry up`."""

OTHERS = """
    CA EDGE_DEBUG EDGE_LOG EDGE_PURE EDGE_URL FAULTS HOME JOIN_TOKEN LOG_LEVEL TOKEN URL
"""
"""What else the programs read, without SKERRY_ at the front."""
FOR_TESTS: Final = "SKERRY_TEST_"
"""The prefix of variables that only tests read."""
KNOWN: Final = frozenset([*SETTINGS.split(), *(f"SKERRY_{name}" for name in OTHERS.split())])


class SettingInForce(Struct):
    """A setting of one process."""

    name: str
    """The environment variable."""
    value: str
    """As text; '' if it isn't set. If the value contains a secret, only the rest."""
    origin: Origin


def in_force(
    settings: Any,
    environ: Mapping[str, str] | None = None,
    *,
    prefix: str = "SKERRY_",
    origins: Mapping[str, Origin] | None = None,
) -> list[SettingInForce]:
    """Return all settings of a settings dataclass, by name.

    `environ` is the environment that they may come from; None means this process's. `origins` gives by field where a
    value comes from, where comparing it with the environment can't tell.
    """
    environ = os.environ if environ is None else environ
    found = []
    for each in fields(settings):
        name, value = f"{prefix}{each.name.upper()}", getattr(settings, each.name)
        origin: Origin = "program"
        if origins is not None and each.name in origins:
            origin = origins[each.name]
        elif environ.get(name):
            origin = "environment"
        elif value == each.default or (each.default_factory is not MISSING and value == each.default_factory()):
            origin = "default"
        found.append(
            SettingInForce(name, _text(value, prefix) if each.repr else _without_secret(each.name, value), origin)
        )
    return sorted(found, key=lambda setting: setting.name)


def unknown(environ: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for each variable that looks like one of ours but isn't; None means this process's environment.

    The lines don't contain the values: one may be a misspelled secret.
    """
    from difflib import get_close_matches  # here, since hardly any start of a command needs it

    environ = os.environ if environ is None else environ
    lines = []
    for name in sorted(environ):
        if not name.upper().startswith("SKERRY_") or name in KNOWN or name.startswith(FOR_TESTS) or not environ[name]:
            continue
        near = get_close_matches(name.upper(), sorted(KNOWN), 1, 0.75)
        meant = f"is {near[0]} meant?" if near else "`docs/settings.md` has all that there are"
        lines.append(f"the environment variable {name} is none of Skerry's, and changes nothing: {meant}")
    return lines


def _text(value: Any, prefix: str) -> str:
    """Return a value as an environment variable would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ("," if prefix == "SKERRY_" else " ").join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and value < 1e6 else str(value)


def _without_secret(name: str, value: Any) -> str:
    """Return what may be shown of a secret value: a URL's scheme, host, port and path; else only that it is set."""
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
