"""The chain of seals over the audit log: any change of rows or seals is found, and what is whole is never refused."""

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control import audit_chain
from control.audit_chain import AuditEntry, AuditSeal, ChainBroken, WholeChain

BEGIN = datetime(2026, 11, 27, 12, tzinfo=UTC)

Row = dict[str, Any]


def entry(number: int, text: str = "x") -> AuditEntry:
    values = {"text": text} if text else {}
    at = BEGIN + timedelta(seconds=number)
    return AuditEntry(str(UUID(int=number)), at, "operator", "ada", "", "", "group.create", text, {}, values, {}, None)


def chain(sizes: Sequence[int], text: str = "x") -> tuple[list[AuditSeal], list[Row]]:
    """Seals over so many rows each, and the rows as the API answers them."""
    seals: list[AuditSeal] = []
    rows: list[Row] = []
    for number, size in enumerate(sizes, 1):
        entries = [entry(len(rows) + index, text) for index in range(size)]
        previous = seals[-1].hash if seals else ""
        seals.append(audit_chain.seal(number, previous, entries, BEGIN + timedelta(hours=number)))
        rows += [{**msgspec.to_builtins(made), "seal": number} for made in entries]
    return seals, rows


def verify(seals: list[AuditSeal], rows: list[Row], head: str = "") -> WholeChain:
    async def seals_after(number: int) -> AsyncIterator[AuditSeal]:
        for one in sorted(seals, key=lambda one: one.number):
            if one.number > number:
                yield one

    async def rows_after(number: int) -> AsyncIterator[Row]:
        for row in sorted(rows, key=lambda row: (row["seal"], row["at"], row["id"])):
            if row["seal"] > number:
                yield row

    return asyncio.run(audit_chain.verify(seals_after, rows_after, head))


def cut(seals: list[AuditSeal], rows: list[Row], number: int) -> tuple[list[AuditSeal], list[Row]]:
    """What retention leaves of them: seal `number` without its rows, and what comes after it."""
    anchor = msgspec.structs.replace(seals[number - 1], cut_at=BEGIN + timedelta(days=90))
    return [anchor, *seals[number:]], [row for row in rows if row["seal"] > number]


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(sizes=SIZES, text=st.text(max_size=3), data=st.data())
def test_a_whole_chain_is_whole_with_each_of_its_heads(sizes: list[int], text: str, data: st.DataObject) -> None:
    seals, rows = chain(sizes, text)
    head = data.draw(st.sampled_from(seals)).hash
    assert verify(seals, rows, head) == WholeChain(len(seals), len(rows), seals[-1].hash, seals[-1].sealed_at, None)
    number = data.draw(st.integers(1, len(seals)))
    left, kept = cut(seals, rows, number)
    found = verify(left, kept, seals[-1].hash)
    assert (found.rows, found.head, found.cut_until) == (len(kept), seals[-1].hash, left[0].last_at)


@given(sizes=SIZES, data=st.data())
def test_any_fault_of_a_row_is_found(sizes: list[int], data: st.DataObject) -> None:
    seals, rows = chain(sizes)
    index = data.draw(st.integers(0, len(rows) - 1))
    row = rows[index]
    kind = data.draw(st.sampled_from(["remove", "change", "insert", "move", "swap"]))
    if kind == "remove":
        del rows[index]
    elif kind == "change":
        field = data.draw(st.sampled_from(sorted(row.keys() - {"seal", "before", "after", "details", "at"})))
        row[field] += "."
    elif kind == "insert":
        rows.append({**copy.deepcopy(row), "id": str(UUID(int=10**6))})
    elif kind == "move":
        row["seal"] = data.draw(st.integers(1, len(seals) + 2).filter(lambda number: number != row["seal"]))
    else:
        other = data.draw(st.integers(0, len(rows) - 1).filter(lambda number: number != index)) if len(rows) > 1 else 0
        if other == index:
            return
        rows[other]["id"], row["id"] = row["id"], rows[other]["id"]
    with pytest.raises(ChainBroken):
        verify(seals, rows)


@given(data=st.data())
def test_values_that_a_change_changed_are_sealed(data: st.DataObject) -> None:
    seals, rows = chain([2, 2])
    row = data.draw(st.sampled_from(rows))
    field = data.draw(st.sampled_from(["before", "after", "details"]))
    row[field] = {"text": "y"} if data.draw(st.booleans()) or not row[field] else {}
    with pytest.raises(ChainBroken, match="changed or replaced"):
        verify(seals, rows)


@given(sizes=st.lists(st.integers(1, 3), min_size=2, max_size=5), data=st.data())
def test_any_fault_of_a_seal_is_found(sizes: list[int], data: st.DataObject) -> None:
    seals, rows = chain(sizes)
    head = seals[-1].hash
    number = data.draw(st.integers(1, len(seals)))
    one = seals[number - 1]
    kind = data.draw(st.sampled_from(["remove", "change", "end", "cut", "hash", "remake"]))
    if kind == "remove":
        # With its rows, from which nothing else tells.
        seals.remove(one)
        rows = [row for row in rows if row["seal"] != number]
    elif kind == "change":
        changes = {"count": one.count + 1, "last_at": one.last_at + timedelta(seconds=1), "previous": "0" * 64}
        changes |= {"sealed_at": BEGIN, "rows_hash": "0" * 64, "number": one.number + 100, "first_at": BEGIN.max}
        field = data.draw(st.sampled_from(sorted(changes)))
        one.__setattr__(field, changes[field].replace(tzinfo=UTC) if field == "first_at" else changes[field])
    elif kind == "end":
        # The newest rows, and their seals: only the head that was kept tells.
        seals, rows = seals[: number - 1], [row for row in rows if row["seal"] < number]
    elif kind == "cut":
        one.cut_at = BEGIN
    elif kind == "remake":
        # Other rows under a seal that is made for them, and that the next one is said to continue.
        hashed = audit_chain.RowsHash()
        for row in (row for row in rows if row["seal"] == number):
            row["action"] = "group.delete"
            hashed.add(row)
        one.rows_hash = hashed.hexdigest()
        one.hash = audit_chain.seal_hash(one)
        if number < len(seals):
            seals[number].previous = one.hash
    else:
        one.hash = "0" * 64
    with pytest.raises(ChainBroken):
        verify(seals, rows, head)


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), data=st.data())
def test_a_chain_that_is_made_anew_lacks_the_head(sizes: list[int], data: st.DataObject) -> None:
    head = chain(sizes)[0][-1].hash
    seals, rows = chain(sizes, "other")
    verify(seals, rows)
    with pytest.raises(ChainBroken, match="no seal has the hash"):
        verify(seals, rows, head)


def test_the_time_at_which_rows_were_cut_cant_be_moved() -> None:
    seals, rows = chain([2, 2, 2])
    left, kept = cut(seals, rows, 2)
    left[0].last_at -= timedelta(days=1)
    with pytest.raises(ChainBroken, match="its hash is another one"):
        verify(left, kept)


def test_a_column_that_is_new_and_empty_changes_no_old_hash() -> None:
    seals, rows = chain([3])
    for row in rows:
        row |= {"ticket": "", "labels": {}, "approved_by": None}
    verify(seals, rows)
    rows[1]["ticket"] = "OPS-1"
    with pytest.raises(ChainBroken):
        verify(seals, rows)


def test_what_is_sealed_while_it_is_read_is_no_fault() -> None:
    seals, rows = chain([2, 2, 2])
    shown = 1

    async def seals_after(number: int) -> AsyncIterator[AuditSeal]:
        nonlocal shown
        for one in seals[number:shown]:
            yield one
        # One more each time, after the rows were read.
        shown = min(shown + 1, 3)

    async def rows_after(number: int) -> AsyncIterator[Row]:
        for row in [row for row in rows if number < row["seal"] <= shown]:
            yield row

    assert asyncio.run(audit_chain.verify(seals_after, rows_after)).rows == 6
