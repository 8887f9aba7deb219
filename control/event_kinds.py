"""The kinds of events, as messages of webhooks have them in `type`. docs/how-to/send-events.md says what each is."""

from typing import Literal, get_args

EventKind = Literal[
    "node.offline",
    "node.online",
    "node.overdue",
    "node.caught_up",
    "sync.failed",
    "release.arrived",
    "release.failed",
    "operator.acted",
    "webhook.test",
]
KINDS: tuple[EventKind, ...] = get_args(EventKind)
