"""What the zygote does before it forks, so that its children share as much of its memory as can be. Each test has a
process of its own: nothing of it can be undone."""

import subprocess
import sys

import pytest

from edge_runtime.children import immortal
from tests.support.deadlines import scaled

needs_immortal = pytest.mark.skipif(not immortal.possible(), reason="this Python's counts aren't known")


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=scaled(120), check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@needs_immortal
def test_everything_is_immortal_and_what_comes_later_is_not():
    run("""
import gc, sys, weakref
from edge_runtime.children import immortal

class Own:
    def method(self):
        return "a constant of it", 1 << 70

own = Own()
own.field = {"a": [1.5, b"bytes " * 3, "text " + str(1)], "it": own}
def nested(default=("a default", 10 ** 30)):
    return own, default
def counts(*objects):
    return {sys.getrefcount(each) for each in objects}

assert sys.getrefcount(own) < 10
assert immortal.make_immortal() > 5000
forever = counts(None)
code = Own.method.__code__
assert counts(Own, own, own.field, *own.field["a"], nested, nested.__defaults__) == forever
assert counts(*nested.__defaults__, Own.method, code, code.co_consts, *code.co_consts, sys.modules, gc) == forever
# The process works on, and counts what it makes from here on.
class Later:
    pass
later = Later()
gone = weakref.ref(later)
own.field["later"] = later
del later
assert gone() is not None
del own.field["later"]
assert gone() is None
own.field.clear()
import decimal, json
assert json.loads(json.dumps({"a": [str(decimal.Decimal("1.50"))]})) == {"a": ["1.50"]}
cycle = Later()
cycle.itself = cycle
gone = weakref.ref(cycle)
del cycle
gc.collect()
assert gone() is None
# The second time finds what came since, and harms nothing.
assert immortal.make_immortal() > 0
""")


SHARED = """
import os, re, sys
from edge_runtime.children import immortal

class Own:
    pass

objects = [Own() for _ in range(50_000)]
texts = [f"text {number}" for number in range(50_000)]
if sys.argv[1:] == ["immortal"]:
    immortal.make_immortal()

def private():
    return int(re.search(r"Private_Dirty: +(\\d+)", open("/proc/self/smaps_rollup").read())[1])

if os.fork() == 0:
    before = private()
    for each in (*objects, *texts):
        kept = each
    print(private() - before, flush=True)
    os._exit(0)
os.wait()
"""


@needs_immortal
def test_a_child_shares_what_it_only_reads():
    def own(*arguments: str) -> int:
        """KiB that the child has copied."""
        program = [sys.executable, "-c", SHARED, *arguments]
        return int(subprocess.run(program, capture_output=True, text=True, timeout=scaled(120), check=True).stdout)

    counted, immortal_ones = own(), own("immortal")
    assert counted > 5000
    # The tuple that the child makes has 800 of them.
    assert immortal_ones < 2000


def test_an_unknown_python_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(immortal, "_KNOWN", ())
    assert not immortal.possible()
    assert immortal.make_immortal() == 0
