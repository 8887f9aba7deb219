"""The file of callers: what an entry may be, what is said of a bad one, and how a command changes its text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.files import FileUnfit
from edge_runtime.web import callers_file
from edge_runtime.web.callers_file import CallerEntry, parse

DIGEST = "a1" * 32
OTHER = "b2" * 32
SECRET = "skc_a-token-that-nobody-may-see"
GOOD = f"""
# The tills of the shop.
[[caller]]
name = "till"
token_sha256 = "{DIGEST}"
functions = ["orders", "stock"]
rate = 50
"""


def unfit(text: str) -> str:
    with pytest.raises(FileUnfit) as refused:
        parse(text.encode(), "callers.toml")
    assert SECRET not in str(refused.value)
    return str(refused.value)


def test_a_caller_has_its_functions_and_its_rate() -> None:
    assert parse(GOOD.encode(), "f") == [
        CallerEntry("till", (bytes.fromhex(DIGEST),), (), frozenset({"orders", "stock"}), 50.0, 50, False)
    ]
    assert parse(b"", "f") == []


def test_a_caller_may_have_two_tokens_and_a_certificate_in_the_form_of_openssl() -> None:
    colons = ":".join(["A1"] * 32)
    text = f"""[[caller]]\nname = "a"\ntoken_sha256 = ["{DIGEST}", "{OTHER}"]\ncertificate_sha256 = "{colons}"
    functions = "all"\nrate = 0.2\nburst = 9\npages = true"""
    with pytest.raises(FileUnfit):
        parse(text.encode() + b"\n[[caller]]", "f")
    text = text.replace("A1", "C3")
    tokens = bytes.fromhex(DIGEST), bytes.fromhex(OTHER)
    assert parse(text.encode(), "f") == [CallerEntry("a", tokens, (bytes.fromhex("c3" * 32),), None, 0.2, 9, True)]


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        ('name = "till"', 'name = "Till"', "caller 1: name"),
        ('name = "till"', "name = 7", "caller 1: name"),
        ('name = "till"', "", "caller 1: name"),
        (DIGEST, DIGEST[1:], "caller 1 (till): token_sha256"),
        (DIGEST, SECRET, "caller 1 (till): token_sha256"),
        (f'token_sha256 = "{DIGEST}"', "token_sha256 = 5", "caller 1 (till): token_sha256"),
        (f'token_sha256 = "{DIGEST}"', "token_sha256 = []", "neither token_sha256 nor certificate_sha256"),
        (f'token_sha256 = "{DIGEST}"', f'token = "{SECRET}"', "caller 1 (till): there is no field token"),
        ('["orders", "stock"]', '"orders"', "caller 1 (till): functions"),
        ('["orders", "stock"]', '["orders", "st*"]', "caller 1 (till): functions"),
        ('functions = ["orders", "stock"]', "", "caller 1 (till): functions"),
        ("rate = 50", "rate = 0", "caller 1 (till): rate"),
        ("rate = 50", "rate = -1", "caller 1 (till): rate"),
        ("rate = 50", "rate = nan", "caller 1 (till): rate"),
        ("rate = 50", "rate = inf", "caller 1 (till): rate"),
        ("rate = 50", "rate = true", "caller 1 (till): rate"),
        ("rate = 50", 'rate = "50"', "caller 1 (till): rate"),
        ("rate = 50", "burst = 5", "caller 1 (till): burst needs a rate"),
        ("rate = 50", "rate = 50\nburst = 0", "caller 1 (till): burst"),
        ("rate = 50", "rate = 50\nburst = 1.5", "caller 1 (till): burst"),
        ("rate = 50", "pages = 1", "caller 1 (till): pages"),
        ("[[caller]]", "[caller]", "[[caller]], in two pairs"),
        ("[[caller]]", "[[callers]]", "callers is"),
        ("rate = 50", f"rate = {SECRET}", "line 7"),
        (GOOD, GOOD + GOOD, "caller 2 (till) has the name of an earlier one, till"),
        (GOOD, GOOD + GOOD.replace('"till"', '"kiosk"'), "caller 2 (kiosk) has the token or certificate of"),
    ],
)
def test_a_bad_file_is_said_to_be_so_by_entry_and_field(changed: str, to: str, said: str) -> None:
    assert changed in GOOD
    told = unfit(GOOD.replace(changed, to))
    assert told.startswith(("callers.toml: ", "callers.toml must", "callers.toml is"))
    assert said in told


def test_too_many_callers_and_what_is_no_text_are_refused() -> None:
    with pytest.raises(FileUnfit, match="UTF-8"):
        parse(b"\xff", "f")
    with pytest.raises(FileUnfit, match="1001 callers"):
        parse(b"[[caller]]\n" * 1001, "f")


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
ENTRIES = st.lists(
    st.builds(
        lambda name, digests, functions, rate, burst, pages: CallerEntry(
            name, digests[:1], digests[1:], functions, float(rate), burst if rate else 1, pages
        ),
        NAMES,
        st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=2, unique=True).map(tuple),
        st.none() | st.frozensets(NAMES, max_size=3),
        st.just(0) | st.integers(1, 1000),
        st.integers(1, 1000),
        st.booleans(),
    ),
    max_size=5,
    unique_by=(lambda entry: entry.name, lambda entry: entry.tokens, lambda entry: entry.certificates or entry.name),
)


@given(ENTRIES, st.integers(0, 4))
def test_what_is_added_is_read_and_what_is_removed_is_gone(entries: list[CallerEntry], number: int) -> None:
    text = "# Kept as it is.\n"
    for entry in entries:
        text = callers_file.added(text, entry)
    keys = [digest for entry in entries for digest in (*entry.tokens, *entry.certificates)]
    if len(keys) != len(set(keys)):
        return
    assert parse(text.encode(), "f") == entries
    left = callers_file.without(text, number)
    assert left.startswith("# Kept as it is.\n")
    assert parse(left.encode(), "f") == entries[:number] + entries[number + 1 :]
