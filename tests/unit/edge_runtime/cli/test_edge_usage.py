"""What `skerry-edge` says of words that it doesn't know."""

import pytest
from click.testing import CliRunner

from edge_runtime.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stauts"], "Did you mean 'status'?"),
        (["check_database"], "'check-database'"),
        (["status", "--sate", "x"], "--state"),
        (["check", f"{__file__}x"], f"Did you mean '{__file__}'?"),
    ],
)
def test_a_word_that_is_near_to_another_is_answered_with_it(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert told in result.output
