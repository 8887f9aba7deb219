"""What a policy means, and that each value that means nothing is refused by the name of its field."""

import sys
import zoneinfo
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from control.problems import CODES, ProblemError
from control.rollouts import policy
from control.rollouts.policy import AT_ONCE, Amount, Gate, Policy, StepTable, limit_of, rules_of

OF_THE_ISSUE: dict[str, Any] = {
    "steps": ["1", "5%", {"until": "25%", "pause": "2h"}, {"pause": "approval", "role": "deploy"}, "100%"],
    "bake": "10m",
    "max_failed": "2%",
    "on_failure": "pause",
    "on_unknown": "pause",
    "unknown_after": "24h",
    "window": "Mon-Fri 22:00-05:00 Europe/Lisbon",
    "gate": [{"metric": "error_ratio", "than_before": "1.2x", "at_least_calls": 200}],
}


def made(**fields: Any) -> Policy:
    """A policy as a client sends it."""
    return msgspec.convert(fields, Policy)


def test_the_policy_of_the_how_to_means_what_it_says() -> None:
    rules = rules_of(made(**OF_THE_ISSUE))
    assert [step.text for step in rules.steps] == ["1", "5%", "25%, pause 2h", "pause approval", "100%"]
    assert [step.until and step.until.up(200) for step in rules.steps] == [1, 10, 50, None, 200]
    assert [step.pause for step in rules.steps] == [None, None, timedelta(hours=2), None, None]
    assert [step.approval for step in rules.steps] == [False, False, False, True, False]
    assert [step.whole for step in rules.steps] == [False, False, False, False, True]
    assert (rules.bake, rules.unknown_after) == (timedelta(minutes=10), timedelta(days=1))
    assert rules.max_failed == Amount(None, Fraction(1, 50))
    assert rules.window is not None
    assert rules.window.days == {0, 1, 2, 3, 4}
    assert (rules.window.begins, rules.window.ends) == (22 * 60, 5 * 60)
    assert rules.window.zone == ZoneInfo("Europe/Lisbon")
    assert limit_of(rules.gates[0]) == policy.GateLimit(1.2, None)


def test_a_policy_without_anything_rehearses_and_starts_all_at_once() -> None:
    rules = rules_of(Policy())
    assert [step.text for step in rules.steps] == ["100%"]
    assert (rules.rehearse, rules.rehearsal_time) == (True, timedelta(minutes=10))
    assert (rules.window, rules.spread_by, rules.gates) == (None, None, ())
    assert rules.max_failed.down(10**6) == 0
    assert rules.max_unknown.down(7) == 7


def test_the_policy_of_groups_without_one_waits_for_nothing_but_the_rehearsal() -> None:
    rules = rules_of(AT_ONCE)
    assert (rules.rehearse, rules.bake, len(rules.steps), rules.steps[0].whole) == (True, timedelta(0), 1, True)
    # Others get it though it fails on some, as they do without a rehearsal.
    assert rules.max_failed.down(7) == 7


@pytest.mark.parametrize("body", [OF_THE_ISSUE, {}, {"steps": ["10", "20", "50%", "100%"], "rehearse": False}])
def test_a_policy_comes_back_as_it_was_stored(body: dict[str, Any]) -> None:
    read = made(**body)
    assert msgspec.convert(msgspec.to_builtins(read), Policy) == read
    assert msgspec.json.decode(msgspec.json.encode(read), type=Policy) == read


WRONG: list[tuple[str, dict[str, Any], str]] = [
    # field, fields of the policy, a part of what is said
    ("steps[0]", {"steps": ["many", "100%"]}, "no number of nodes and no share"),
    ("steps[0]", {"steps": ["0", "100%"]}, "no node at all"),
    ("steps[0]", {"steps": ["0%", "100%"]}, "no node at all"),
    ("steps[0]", {"steps": ["-5%", "100%"]}, "no number of nodes and no share"),
    ("steps[0]", {"steps": ["5 %", "100%"]}, "no number of nodes and no share"),
    ("steps[0]", {"steps": ["05", "100%"]}, "no number of nodes and no share"),
    ("steps[0]", {"steps": ["\u0665%", "100%"]}, "no number of nodes and no share"),
    ("steps[0]", {"steps": ["5%\n", "100%"]}, "no number of nodes and no share"),
    ("steps[1]", {"steps": ["5%", "101%"]}, "more than 100%"),
    ("steps[1]", {"steps": ["25%", "5%", "100%"]}, "less than an earlier step"),
    ("steps[2]", {"steps": ["25%", "7", "5%", "100%"]}, "less than an earlier step"),
    ("steps[1]", {"steps": ["10", "9", "100%"]}, "less than an earlier step"),
    ("steps[2]", {"steps": ["10", "50%", "9", "100%"]}, "less than an earlier step"),
    ("steps[1]", {"steps": ["5%", "99.999%"]}, "the last step must be"),
    ("steps[0]", {"steps": ["1000"]}, "the last step must be"),
    ("steps[1]", {"steps": ["100%", {"pause": "approval"}]}, "the last step must be"),
    ("steps[0]", {"steps": [{}, "100%"]}, "until, pause or both"),
    ("steps[0].until", {"steps": [{"until": "x"}, "100%"]}, "no number of nodes and no share"),
    ("steps[0].until", {"steps": [{"until": "0.000%"}, "100%"]}, "no node at all"),
    ("steps[1].pause", {"steps": ["1", {"pause": "never"}, "100%"]}, "no duration"),
    ("steps[1].pause", {"steps": ["1", {"pause": "91d"}, "100%"]}, "more than 90d"),
    ("steps[0].role", {"steps": [{"until": "1", "pause": "2h", "role": "admin"}, "100%"]}, 'pause = "approval"'),
    ("bake", {"bake": "10"}, "no duration"),
    ("bake", {"bake": "10 m"}, "no duration"),
    ("bake", {"bake": "1.5h"}, "no duration"),
    ("bake", {"bake": "999999h"}, "more than 90d"),
    ("max_failed", {"max_failed": "a few"}, "no number of nodes and no share"),
    ("max_failed", {"max_failed": "100.1%"}, "more than 100%"),
    ("max_unknown", {"max_unknown": "2.2222%"}, "no number of nodes and no share"),
    ("max_unknown", {"max_unknown": "12345678"}, "no number of nodes and no share"),
    ("unknown_after", {"unknown_after": "soon"}, "no duration"),
    ("unknown_after", {"unknown_after": "59s"}, "less than 60s"),
    ("rehearsal_time", {"rehearsal_time": "1w"}, "no duration"),
    ("rehearsal_time", {"rehearsal_time": "0s"}, "less than 1s"),
    ("window", {"window": "22:00-05:00 Europe/Lisbon"}, "no window"),
    ("window", {"window": "Mon-Fri 22:00-05:00"}, "no window"),
    ("window", {"window": "Mon-Fri 9:00-17:00 Europe/Lisbon"}, "no window"),
    ("window", {"window": "Mon-Fry 22:00-05:00 Europe/Lisbon"}, "Fry, which is no day"),
    ("window", {"window": "Mo--Fr 22:00-05:00 Europe/Lisbon"}, "no window"),
    ("window", {"window": "Mon 24:01-05:00 Europe/Lisbon"}, "24:01, which is no time"),
    ("window", {"window": "Mon 22:60-05:00 Europe/Lisbon"}, "22:60, which is no time"),
    ("window", {"window": "Mon 22:00-25:00 Europe/Lisbon"}, "25:00, which is no time"),
    ("window", {"window": "Mon 22:00-22:00 Europe/Lisbon"}, "begins when it ends"),
    ("window", {"window": "Mon 24:00-05:00 Europe/Lisbon"}, "begins when it ends"),
    ("window", {"window": "Mon 22:00-05:00 Europe/Atlantis"}, "Europe/Atlantis, which is no time zone"),
    ("window", {"window": "Mon 22:00-05:00 Europe"}, "Europe, which is no time zone"),
    ("window", {"window": "Mon 22:00-05:00 Europe/../Europe/Lisbon"}, "which is no time zone"),
    ("window", {"window": "Mon 22:00-05:00 ../etc/passwd"}, "no window"),
    # It is another one on each machine.
    ("window", {"window": "Mon 22:00-05:00 localtime"}, "no window"),
    ("gate[0].metric", {"gate": [{}]}, "either a metric or a webhook"),
    (
        "gate[0].metric",
        {"gate": [{"metric": "p99", "at_most": "1s", "webhook": "https://a.example"}]},
        "either a metric or",
    ),
    ("gate[0].at_most", {"gate": [{"metric": "p99"}]}, "needs than_before, at_most or both"),
    ("gate[0].at_most", {"gate": [{"metric": "p99", "at_most": "5%"}]}, "no time"),
    ("gate[0].at_most", {"gate": [{"metric": "p99", "at_most": "0ms"}]}, "no time"),
    ("gate[0].at_most", {"gate": [{"metric": "error_ratio", "at_most": "50ms"}]}, "no share"),
    ("gate[0].at_most", {"gate": [{"metric": "error_ratio", "at_most": "150%"}]}, "more than 100%"),
    ("gate[0].than_before", {"gate": [{"metric": "p99", "than_before": "1.2"}]}, "no factor"),
    ("gate[0].than_before", {"gate": [{"metric": "p99", "than_before": "0.0x"}]}, "no factor"),
    ("gate[0].than_before", {"gate": [{"metric": "p99", "than_before": ""}]}, "no factor"),
    (
        "gate[1].at_most",
        {"gate": [{"metric": "p99", "than_before": "2x"}, {"metric": "p99", "at_most": "1h"}]},
        "no time",
    ),
    ("gate[0].webhook", {"gate": [{"webhook": ""}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "checks.example"}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "https://"}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "https://a.example/ b"}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "https://[::1"}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "file:///etc/passwd"}]}, "no URL"),
    ("gate[0].webhook", {"gate": [{"webhook": "https://a.example:99999/b"}]}, "a port that doesn't exist"),
    ("gate[0].webhook", {"gate": [{"webhook": "https://me:secret@a.example"}]}, "leave it out"),
    (
        "gate[0].at_least_calls",
        {"gate": [{"webhook": "https://a.example", "at_least_calls": 5}]},
        "without at_least_calls",
    ),
    ("gate[1]", {"gate": 2 * [{"metric": "p99", "at_most": "1s"}]}, "the same as gate[0]"),
    ("gate[0].at_most", {"gate": [{"webhook": "https://a.example", "at_most": "1s"}]}, "without at_most"),
    ("gate[0].than_before", {"gate": [{"webhook": "https://a.example", "than_before": ""}]}, "without than_before"),
    ("gate[0].function", {"gate": [{"webhook": "https://a.example", "function": "orders"}]}, "without function"),
]


@pytest.mark.parametrize(("field", "fields", "said"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_value_that_means_nothing_is_refused_by_its_field(field: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ProblemError) as wrong:
        rules_of(made(**fields))
    assert (wrong.value.code, wrong.value.field) == ("invalid_policy", field)
    assert said in wrong.value.detail
    assert CODES["invalid_policy"].status == 422


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": []},
        {"steps": ["1"] * 51},
        {"steps": ["1" * 65]},
        {"steps": [{"until": "1", "after": "2h"}]},
        {"steps": [{"pause": "approval", "role": "read"}]},
        {"on_failure": "abort"},
        {"on_unknown": "promote"},
        {"spread_by": "a b"},
        {"rehearse": "no"},
        {"gate": [{"metric": "p50", "at_most": "1s"}]},
        {"gate": [{"metric": "p99", "at_most": "1s", "at_least_calls": 0}]},
        {"gate": [{"metric": "p99", "at_most": "1s", "function": "Orders"}]},
        {"gate": [{"webhook": "https://a.example"}] * 21},
        {"windows": "Mon-Fri 22:00-05:00 Europe/Lisbon"},
    ],
    ids=str,
)
def test_what_isnt_of_a_policys_form_is_refused_where_it_is_read(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        made(**fields)


@pytest.mark.parametrize(
    ("gate", "limit"),
    [
        (Gate(metric="error_ratio", at_most="0.5%"), (None, 0.005)),
        (Gate(metric="error_ratio", at_most="0%", than_before="0.5x"), (0.5, 0.0)),
        (Gate(metric="p99", at_most="50ms"), (None, 0.05)),
        (Gate(metric="p99", at_most="2.5s", than_before="10x"), (10.0, 2.5)),
        (Gate(metric="p99", than_before="1.25x", function="orders"), (1.25, None)),
        (Gate(webhook="https://checks.example/ready?a=b"), (None, None)),
        (Gate(webhook="http://10.0.0.1:8080"), (None, None)),
    ],
    ids=str,
)
def test_a_gates_limits(gate: Gate, limit: tuple[float | None, float | None]) -> None:
    assert limit_of(gate) == policy.GateLimit(*limit)


def test_steps_may_repeat_a_share_and_mix_numbers_with_shares() -> None:
    rules = rules_of(made(steps=["100", "1%", {"pause": "0s"}, "1%", "200", {"until": "100%", "pause": "approval"}]))
    assert [step.until and step.until.up(1000) for step in rules.steps] == [100, 10, None, 10, 200, 1000]


DURATIONS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@given(st.integers(0, 10**6 - 1), st.sampled_from(sorted(DURATIONS)))
def test_durations(count: int, unit: str) -> None:
    seconds = count * DURATIONS[unit]
    if seconds <= 90 * 86400:
        assert rules_of(Policy(bake=f"{count}{unit}")).bake == timedelta(seconds=seconds)
    else:
        with pytest.raises(ProblemError, match="90d"):
            rules_of(Policy(bake=f"{count}{unit}"))


@given(st.integers(1, 100_000), st.integers(0, 5000))
@example(5_000, 20)
@example(33_333, 3)
@example(14_300, 1000)
def test_a_share_of_nodes_is_exact_and_rounded_up_for_steps_and_down_for_failures(thousandths: int, nodes: int) -> None:
    text = f"{thousandths // 1000}.{thousandths % 1000:03}%"
    rules = rules_of(Policy(steps=[text, "100%"], max_failed=text))
    step = rules.steps[0].until
    assert step is not None
    # In whole numbers, without rounding anything on the way.
    up = next(n for n in range(nodes + 1) if n * 100_000 >= thousandths * nodes)
    down = next(n for n in range(nodes, -1, -1) if n * 100_000 <= thousandths * nodes)
    assert (step.up(nodes), rules.max_failed.down(nodes)) == (up, down)
    assert (step.up(nodes) > 0) == (nodes > 0)


@given(st.integers(1, 10**7 - 1), st.integers(0, 5000))
def test_a_number_of_nodes_is_at_most_all_of_them(count: int, nodes: int) -> None:
    rules = rules_of(Policy(steps=[str(count), "100%"], max_failed=str(count)))
    step = rules.steps[0].until
    assert step is not None
    assert step.up(nodes) == rules.max_failed.down(nodes) == min(count, nodes)


ZONES = ("Europe/Lisbon", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "America/Santiago", "UTC")
CHANGES = (
    # Days around which clocks are changed somewhere, on the days of the week on which that is, and quiet ones.
    *(date(2026, 3, 28), date(2026, 10, 24), date(2026, 3, 7), date(2026, 10, 31)),
    *(date(2026, 4, 4), date(2026, 10, 3), date(2026, 9, 5), date(2026, 6, 30), date(2026, 12, 31)),
)
SHORT = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def written(first: int, last: int, begins: int, ends: int, zone: str) -> str:
    days = SHORT[first] if first == last else f"{SHORT[first]}-{SHORT[last]}"
    return f"{days} {begins // 60:02}:{begins % 60:02}-{ends // 60:02}:{ends % 60:02} {zone}"


def opened(first: int, last: int, begins: int, ends: int, zone: str, around: date) -> set[datetime]:
    """Every minute of these days that is in a window: the window's own minutes of each day, one by one, as the clocks
    there show them, looked up in UTC both before and after the clocks are put back."""
    days, day = {first}, first
    while day != last:
        day = (day + 1) % 7
        days.add(day)
    found = set()
    for offset in range(-2, 5):
        that = around + timedelta(days=offset)
        if that.weekday() not in days:
            continue
        midnight = datetime(that.year, that.month, that.day)
        for minute in range(begins, ends if ends > begins else ends + 1440):
            shown = midnight + timedelta(minutes=minute)
            for fold in (0, 1):
                at = shown.replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)
                # A time that clocks skip isn't shown at any.
                if at.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == shown:
                    found.add(at)
    return found


@given(
    st.integers(0, 6),
    st.integers(0, 6),
    st.integers(0, 1439) | st.sampled_from([0, 60, 90, 120, 150, 180]),
    st.integers(0, 1440) | st.sampled_from([0, 60, 90, 120, 150, 180, 1440]),
    st.sampled_from(ZONES),
    st.sampled_from(CHANGES),
)
@example(0, 4, 22 * 60, 5 * 60, "Europe/Lisbon", date(2026, 3, 28))
@example(5, 6, 90, 150, "Europe/Lisbon", date(2026, 10, 24))
@example(5, 6, 0, 1440, "America/New_York", date(2026, 10, 31))
@example(4, 0, 23 * 60 + 59, 0, "UTC", date(2026, 12, 31))
def test_a_window_is_open_at_its_minutes_alone(
    first: int, last: int, begins: int, ends: int, zone: str, around: date
) -> None:
    assume(begins != ends)
    window = rules_of(Policy(window=written(first, last, begins, ends, zone))).window
    assert window is not None
    expected = opened(first, last, begins, ends, zone, around)
    at = datetime(around.year, around.month, around.day, tzinfo=UTC)
    for _ in range(2 * 1440):
        assert window.open(at) == (at in expected), at
        at += timedelta(minutes=1)


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-03-27T22:00:00+00:00", True),  # Friday: it begins
        ("2026-03-27T21:59:59.999999+00:00", False),
        ("2026-03-28T04:59:59.999999+00:00", True),  # Saturday morning is Friday's
        ("2026-03-28T05:00:00+00:00", False),
        ("2026-03-28T23:00:00+00:00", False),  # Saturday night isn't
        ("2026-03-30T04:30:00+01:00", False),  # Monday morning would be Sunday's
        ("2026-03-30T22:30:00+01:00", True),  # summer time since Sunday
        ("2026-03-30T21:30:00+00:00", True),
        ("2026-03-30T20:59:00+00:00", False),
    ],
)
def test_a_window_over_midnight_in_a_zone_with_summer_time(at: str, is_open: bool) -> None:
    window = rules_of(Policy(window="Mon-Fri 22:00-05:00 Europe/Lisbon")).window
    assert window is not None
    assert window.open(datetime.fromisoformat(at)) == is_open


def test_days_may_go_over_the_weeks_end_and_in_any_case() -> None:
    window = rules_of(Policy(window="sat-MON 00:00-24:00 UTC")).window
    assert window is not None
    assert window.days == {5, 6, 0}
    assert rules_of(Policy(window="Sun-Sat 01:00-02:00 UTC")).window == policy.Window(
        frozenset(range(7)), 60, 120, ZoneInfo("UTC")
    )


def test_a_machine_without_time_zones_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python is where neither Debian's tzdata nor the package of that name is there."""
    before = zoneinfo.TZPATH
    # Python's own fallback, should this machine have it.
    monkeypatch.setitem(sys.modules, "tzdata", None)
    zoneinfo.reset_tzpath([tmp_path])
    ZoneInfo.clear_cache()
    try:
        with pytest.raises(ProblemError) as wrong:
            rules_of(Policy(window="Mon-Fri 22:00-05:00 Europe/Lisbon"))
        # Another machine has accepted it.
        window = rules_of(Policy(window="Mon-Sun 00:00-24:00 Europe/Lisbon"), accepted=True).window
        assert window is not None
        assert not window.open(datetime(2026, 6, 3, 12, tzinfo=UTC))
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()
    assert (wrong.value.code, wrong.value.field) == ("invalid_policy", "window")
    assert "install its package tzdata" in wrong.value.detail
    assert rules_of(Policy(window="Mon-Fri 22:00-05:00 Europe/Lisbon")).window is not None


def test_a_step_is_a_word_or_a_table() -> None:
    by_word, by_table = rules_of(Policy(steps=["5%", "100%"])), rules_of(Policy(steps=[StepTable(until="5%"), "100%"]))
    assert by_word == by_table
