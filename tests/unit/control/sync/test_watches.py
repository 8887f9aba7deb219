"""Which watches a node must know, and when it is told."""

from types import SimpleNamespace
from typing import Any

import msgspec

from control.protocol import wire
from control.sync.watches import Watches, WatchRow

SINCE = "2026-11-28T06:00:00Z"


def row(id: str, node: str | None = None, groups: list[str] | None = None, **question: Any) -> WatchRow:
    return WatchRow(id, "replica", "admin", node, groups, {"since": SINCE, **question}, 5.0)


def node(id: str, group: str) -> Any:
    return SimpleNamespace(id=id, group_id=group)


def told(watches: Watches, of: Any, digest: str = "") -> wire.Watch | None:
    answer = watches.answer(of, digest)
    return None if answer is None else msgspec.json.decode(answer, type=wire.Watch)


def test_a_watch_is_for_a_node_for_groups_or_for_all() -> None:
    watches = Watches()
    watches.take([row("all"), row("one", "n1"), row("group", None, ["g1"]), row("gone", "n1", ["g1"])])
    assert [w.id for w in watches.of(node("n1", "g1"))] == ["all", "one", "group", "gone"]
    assert [w.id for w in watches.of(node("n2", "g1"))] == ["all", "group"]
    # Moved to a group that the operator may not see.
    assert [w.id for w in watches.of(node("n1", "g2"))] == ["all", "one"]


def test_a_node_is_told_once_and_told_the_end() -> None:
    watches = Watches()
    assert told(watches, node("n1", "g1")) is None
    watches.take([row("all", function="orders")])
    first = told(watches, node("n1", "g1"))
    assert first is not None
    assert [(q.id, q.function, q.rate) for q in first.questions] == [("all", "orders", 5.0)]
    assert told(watches, node("n1", "g1"), first.digest) is None
    watches.take([])
    last = told(watches, node("n1", "g1"), first.digest)
    assert last is not None
    assert (last.digest, last.questions) == ("", [])
    assert told(watches, node("n1", "g1")) is None


def test_the_changed_watches_are_those_that_began_or_ended() -> None:
    watches = Watches()
    assert [w.id for w in watches.take([row("a"), row("b")])] == ["a", "b"]
    assert watches.take([row("a"), row("b")._replace(rate=1.0)]) == []
    assert watches.alive["b"].rate == 1.0
    assert [w.id for w in watches.take([row("b"), row("c")])] == ["c", "a"]


def test_what_a_newer_control_asks_is_left_out() -> None:
    watches = Watches()
    watches.take([row("a", limit="all of them"), row("b", what_is_new=1)])
    assert list(watches.alive) == ["b"]


def test_an_edge_without_a_version_is_of_version_1() -> None:
    # Both versions leave out what is at its default, so the default must stay what the first one had.
    poll = msgspec.json.decode(b'{"generation":0,"digest":"%s"}' % (b"0" * 64), type=wire.Poll)
    assert poll.protocol == 1
    assert b'"protocol":4' in msgspec.json.encode(wire.Poll(0, "0" * 64, protocol=wire.PROTOCOL))
