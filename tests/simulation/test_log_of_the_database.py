"""Models of the places where two processes' views of the database's log may part, with all of their states (ADR 71)."""

import pytest

from tests.support import log_model, opening_model
from tests.support.explicit_states import Found, search

MOST = 30_000
"""States of a model, about 0.2 s of a processor."""


def searched(*, only_if_left: bool, looks_again: bool, last: str = "restart") -> Found:
    """What comes of a checkpoint, a writer and a reader."""
    programs = {
        "writer": log_model.writer(commits=3),
        "reader": log_model.reader(),
        "checkpointer": log_model.checkpointer(only_if_left=only_if_left, looks_again=looks_again, last=last),
    }
    return search(log_model.world(commits=2), programs, MOST)


@pytest.mark.parametrize("last", ["restart", "truncate"])
@pytest.mark.parametrize(
    ("only_if_left", "looks_again"), [(True, False), (False, True)], ids=["the schedule", "the engine"]
)
def test_behind_either_wall_each_reader_finds_what_was_committed(
    *, only_if_left: bool, looks_again: bool, last: str
) -> None:
    found = searched(only_if_left=only_if_left, looks_again=looks_again, last=last)
    assert (found.wrong, found.steps) == ("", [])
    assert found.states > 5000


def test_without_the_walls_a_checkpoint_in_whose_middle_the_log_begins_anew_hides_a_commit() -> None:
    """The WAL-reset bug: what is looked for is found where it is."""
    found = searched(only_if_left=False, looks_again=False)
    assert found.wrong == "a reader finds COMMIT 2 in the place of 3"
    looked, anew = found.steps.index("writer: anew, backfilled"), found.steps.index("writer: end, first copy")
    # The checkpointer had its copy of the header by then, and moves by it.
    assert "checkpointer: left" in found.steps[looked:]
    assert anew < found.steps.index("checkpointer: note", looked)


def opened(*, looks_for_others: bool = True) -> Found:
    """What comes of processes that open the file, are killed or close it."""
    programs = {
        "zygote": opening_model.zygote(),
        **{who: opening_model.worker(who) for who in opening_model.WORKERS},
        **{f"killer of {who}": opening_model.killer(who) for who in opening_model.WORKERS},
        "guard": opening_model.guard(looks_for_others=looks_for_others),
    }
    return search(opening_model.world(), programs, MOST)


def test_whoever_opens_the_file_first_or_closes_it_last_no_two_indices_are_in_use() -> None:
    found = opened()
    assert (found.wrong, found.steps) == ("", [])
    assert found.states > 2000


def test_two_indices_in_use_would_be_found() -> None:
    assert opened(looks_for_others=False).wrong == "two indices of one file are in use"
