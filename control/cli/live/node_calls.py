"""What a node has counted of its functions' calls, as `skerry node show --calls` shows it."""

from control.cli.live import record_stream
from control.cli.support import output
from control.cli.support.client import Json, connection_settings

NAMED = 4
"""Codes with which calls of a function ended that are shown: the most frequent ones."""


async def asked(node: Json) -> list[Json] | None:
    """What the node answers, of each function and release; None where it doesn't answer, which stderr says.

    Raises: as `record_stream.parts` does.
    """
    if "functions" not in (node.get("capabilities") or {}).get("questions", ()):
        output.note("its version of skerry-edge doesn't tell what it has counted of calls", style="yellow")
        return None
    found: list[Json] = []
    answered = False
    async with record_stream.RecordClient(connection_settings()) as control:
        async for part in record_stream.parts(control, {"kind": "functions", "node": node["id"]}):
            if part.record is not None:
                found.append(part.record)
            elif part.notice is not None and part.notice["notice"] == "history":
                answered = bool(part.notice.get("count"))
    if not answered:
        why = f"it is {node['state']}" if node["state"] in ("offline", "revoked") else "it didn't answer within 10 s"
        output.note(f"{why}, so it isn't known what it has counted of calls", style="yellow")
        return None
    return sorted(found, key=lambda one: (one.get("function", ""), -one.get("release", 0)))


def show(calls: list[Json] | None) -> None:
    """Print a table of them."""
    if calls is None:
        return
    output.table(
        ["FUNCTION", "VERSION", "RELEASE", "CALLS", "FAILED", "P50", "P99", "CODES"],
        [
            [
                one.get("function", ""),
                one.get("version") or "-",
                one.get("release") or "earlier",
                one.get("calls", 0),
                one.get("failed", 0),
                *(f"{one.get(name, 0.0) * 1000:.1f} ms" if one.get("calls") else "-" for name in ("p50", "p99")),
                _outcomes(one.get("outcomes", {})),
            ]
            for one in calls
        ],
        "it has served no function since it started",
    )
    if calls:
        output.note(f"counted since the node started, {calls[0]['since']}")


def _outcomes(outcomes: dict[str, int]) -> str:
    often = sorted(outcomes.items(), key=lambda pair: (-pair[1], pair[0]))[:NAMED]
    return ", ".join(f"{code} {count}" for code, count in often)
