"""Answers from templates: Jinja2 with escaping always on."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from control import manifest_rules
from control.api.operations import Reply
from control.console import assets, drawings, explanations, fleet_grid, formats, shown_backup, shown_rollout
from control.rollouts import gates
from control.sync import change_effects

Headers = tuple[tuple[bytes, bytes], ...]
PAGE: Headers = ((b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store"))


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    written = (formats.num, formats.share, formats.rate, formats.size, formats.duration, formats.plural)
    made.filters.update({f.__name__: f for f in (*written, formats.clock, formats.sha, formats.cut)})
    made.filters["words"] = fleet_grid.WORDS.__getitem__
    made.filters["standings_said"] = fleet_grid.said
    made.globals.update({f.__name__: f for f in (drawings.bar, drawings.cell, drawings.key_cell)})
    made.filters["rows_said"] = change_effects.rows_text
    made.filters["in_words"] = gates.in_words
    made.filters["nodes_said"] = shown_rollout.said
    made.filters["rollout_verdict"] = shown_rollout.verdict
    made.filters["restore_said"] = shown_backup.said
    made.tests["held"] = shown_rollout.is_held
    made.tests["explained"] = explanations.is_explained
    made.globals |= {"asset": assets.address, "shown": manifest_rules.shown, "NODE_KINDS": shown_rollout.NODE_KINDS}
    made.globals |= {"RESTORE_KINDS": shown_backup.RESTORE_KINDS, "BACKUP_WORDS": shown_backup.WORDS}
    return made


_TEMPLATES = _environment()


def text(template: str, now: datetime, values: Mapping[str, Any]) -> str:
    """Render a template with these values: a page or a part of one. `ago` in it writes times relative to `now`."""
    return _TEMPLATES.get_template(template).render(values, now=now, ago=partial(formats.ago, now=now))


def parts(template: str, now: datetime, **values: Any) -> Callable[..., str]:
    """Return a function that renders parts of pages; it takes the name of a macro in the template and its arguments."""
    module = _TEMPLATES.get_template(template).make_module(values | {"now": now, "ago": partial(formats.ago, now=now)})

    def made(macro: str, **arguments: Any) -> str:
        return str(getattr(module, macro)(**arguments)).strip()

    return made


def page(body: str, status: int = 200, headers: Headers = ()) -> Reply:
    """Return the answer with a page."""
    raw = body.encode()
    return Reply(status, raw, (*PAGE, (b"content-length", b"%d" % len(raw)), *headers))


def redirect(to: str, headers: Headers = ()) -> Reply:
    """Return the answer that sends a browser to another address of the console."""
    return Reply(303, b"", ((b"location", to.encode()), (b"content-length", b"0"), *headers))
