"""What CI ends with is what the README tells a newcomer to type."""

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_ci_ends_with_the_command_of_the_readme():
    command = "apt-get update && apt-get install -y just && just test"
    for_user = "sudo apt-get update && sudo apt-get install -y just && just test"
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert script[-5:] == ['if [ "$(id -u)" = 0 ]; then', command, "else", for_user, "fi"]
    assert for_user in (ROOT / "README.md").read_text().splitlines()
    recipes = ("check", "demo", "toolchains", "compile", "faults", "test-cockroachdb", "test-pure")
    order = [script.index(f"just {recipe}") for recipe in recipes]
    assert order == sorted(order)


def test_ci_runs_the_tests_on_what_is_built_and_on_python_alone():
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert "as_user just compile" not in script
    # As root the user's clone has nothing that is built; else the same clone is told to use none of it.
    assert {"as_user just test-pure", "just test-pure"} <= set(script)
