"""The counting of modules that a request passes."""

import asyncio
import sys
import types

from tests.support.call_path import recording

FIRST = """
import second
async def request():
    leaf()
    await second.decide()
    await second.decide()
    return sum(second.third.double(x) for x in (1, 2))
def leaf(): pass
async def background():
    await second.decide()
"""
SECOND = """
import asyncio
import third
async def decide():
    await asyncio.sleep(0)
    third.look()
    await asyncio.sleep(0)
"""
THIRD = """
def look(): return double(1)
def double(x): return 2 * x
"""


def test_stays_are_changes_of_module_among_functions_that_call_onward(tmp_path, monkeypatch) -> None:
    names = {"first": FIRST, "second": SECOND, "third": THIRD}
    for name, text in names.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    first = __import__("first")

    async def both() -> None:
        await asyncio.gather(first.request(), first.background())

    try:
        with recording(*names, begins=("request",)) as way:
            asyncio.run(both())
    finally:
        for name in names:
            sys.modules.pop(name, None)
    assert way.stays == ["first", "second", "third", "second", "third"], way
    assert (way.modules, way.returns) == (set(names), 2)
    assert [s.name for s in way.starts if not s.calls_onward] == ["leaf", "double", "double", "double", "double"]
    assert isinstance(first, types.ModuleType)
