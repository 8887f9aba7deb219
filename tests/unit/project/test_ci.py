"""What CI ends with is what the README tells a newcomer to type, and what it runs before."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
STEPS = [found[1] for line in SCRIPT if (found := re.match(r'(?:step|tests) "[^"]+" (\w.*)', line))]


def test_ci_ends_with_the_command_of_the_readme() -> None:
    command = "apt-get update && apt-get install -y just && just test"
    for_user = "sudo apt-get update && sudo apt-get install -y just && just test"
    # Behind it nothing comes but the status of what `everything` went on after.
    end = "fi && [ ${#failed[@]} = 0 ]"
    assert SCRIPT[-5:] == ['if [ "$(id -u)" = 0 ]; then', command, "else", for_user, end]
    assert for_user in (ROOT / "README.md").read_text().splitlines()


def test_ci_runs_all_of_its_steps_in_their_order() -> None:
    assert STEPS == [
        'env SKERRY_TEST_WHEELS="$user_home/wheels" just setup',
        "just setup",
        "just check",
        "just docs",
        "just compile",
        "just demo",
        "just test-console",
        "just test-upgrades",
        "just test-packages",
        'just "$faults"',
        'just "$metadata"',
        "as_user just demo",
        'as_user just "$uncompiled"',
        'just "$uncompiled"',
    ]
    assert "just toolchains &&" in SCRIPT


def test_ci_runs_selections_and_everything_all_tests() -> None:
    assert '"") faults=test-native metadata=test-metadata uncompiled=test-uncompiled goes_on= ;;' in SCRIPT
    assert "everything) faults=faults metadata=test-cockroachdb uncompiled=test-pure goes_on=yes ;;" in SCRIPT
    recipes = (ROOT / "Justfile").read_text()
    assert "\ntest-native *ARGS: compile\n" in recipes
    for name in ("test-metadata", "test-uncompiled", "faults *ARGS", "test-cockroachdb *ARGS", "test-pure *ARGS"):
        assert f"\n{name}: browser\n" in recipes


def test_ci_runs_the_tests_on_what_is_built_and_on_python_alone() -> None:
    # As root the user's clone has nothing that is built; else the same clone is told to use none of it.
    assert not [line for line in SCRIPT if "as_user just compile" in line]
    recipes = (ROOT / "Justfile").read_text()
    for name in ("test-pure *ARGS", "test-uncompiled"):
        _, _, body = recipes.partition(f"\n{name}: browser\n")
        assert "SKERRY_EDGE_PURE=1 exec" in body.partition("\n\n")[0]


def test_only_tests_bring_a_browser() -> None:
    """Whoever writes functions, or serves them, doesn't wait for 460 MB more."""
    assert "chromium" not in (ROOT / "scripts" / "setup").read_text()
    recipes = (ROOT / "Justfile").read_text()
    brings = set(re.findall(r"^([a-z-]+)[^\n:]*: browser$", recipes, re.MULTILINE))
    assert brings >= {"test", "test-pure", "test-uncompiled", "test-cockroachdb", "test-metadata", "test-console"}
    assert not brings & {"up", "demo", "check", "toolchains", "compile", "setup"}
