"""What a node counted, as it goes with a poll: its size, and that it can grow."""

import base64

import msgspec

from control.protocol import wire
from edge_runtime.errors import CODES

CALLED = {code for code, known in CODES.items() if known.status}
"""Codes with which requests to a node are refused."""
BEFORE = {
    *("request_invalid", "body_timeout", "body_too_large", "body_memory", "host_refused", "origin_refused"),
    *("cross_site_refused", "token_needed", "caller_unknown", "caller_forbidden", "rate_exceeded", "path_unknown"),
    *("method_unknown",),
}
"""Those of them that are found before there is a call of a function."""


def test_each_way_in_which_a_call_can_end_has_its_number():
    assert wire.OUTCOMES[0] == "other"
    assert set(wire.OUTCOMES) == {"other", "answer_5xx"} | CALLED - BEFORE
    assert len(set(wire.OUTCOMES)) == len(wire.OUTCOMES)


def test_outcomes_only_grow_at_their_end():
    assert wire.OUTCOMES.index("answer_5xx") == 1
    assert wire.OUTCOMES.index("time_limit") == 13
    assert wire.OUTCOMES.index("function_unknown") == 49


def test_a_nodes_numbers_take_less_than_200_bytes_of_a_poll():
    node = wire.NodeNumbers(*[2**40] * 4, 2**31, 2**31, "1.23.456.dev12345+g0123456789ab", 2**16, 2**31, 2**16)
    numbers = msgspec.msgpack.encode(wire.Numbers(2**31, 61.5, [], node))
    assert len(base64.b64encode(numbers)) < 200
    assert msgspec.msgpack.decode(numbers, type=wire.Numbers).node == node


def test_a_poll_without_numbers_is_as_it_was():
    poll = wire.Poll(generation=1, digest="0" * 64)
    assert b"numbers" not in msgspec.json.encode(poll)
    poll.numbers = b"\x90"
    assert b'"numbers":"kA=="' in msgspec.json.encode(poll)
    assert msgspec.json.decode(msgspec.json.encode(poll), type=wire.Poll).numbers == b"\x90"


def test_numbers_can_grow_at_the_end_of_each_array():
    row = [3, 12, [1, 5], b"\0\5\1", "something new"]
    node = [1, 2, 3, 4, 5, 6, "1.0", 7, 8, 9, "something new"]
    found = msgspec.msgpack.decode(msgspec.msgpack.encode([1, 60.0, [row], node, "more"]), type=wire.Numbers)
    assert found.functions == [wire.FunctionNumbers(3, 12, [1, 5], b"\0\5\1")]
    assert found.node is not None
    assert found.node.failed_syncs == 9
    assert msgspec.msgpack.decode(msgspec.msgpack.encode([1, 5.0, []]), type=wire.Numbers).node is None
