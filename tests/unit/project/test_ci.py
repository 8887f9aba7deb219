"""What CI ends with is what the README tells a newcomer to type."""

from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_ci_ends_with_the_command_of_the_readme():
    command = "apt-get update && apt-get install -y just && just test"
    for_user = "sudo apt-get update && sudo apt-get install -y just && just test"
    script = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert script[-5:] == ['if [ "$(id -u)" = 0 ]; then', command, "else", for_user, "fi"]
    assert for_user in (ROOT / "README.md").read_text().splitlines()
    order = [script.index(f"just {recipe}") for recipe in ("check", "demo", "toolchains", "faults", "test-cockroachdb")]
    assert order == sorted(order)
