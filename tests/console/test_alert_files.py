"""What packaging/alerts has, as Prometheus's and the Alertmanager's own tools judge it."""

import shutil
from pathlib import Path

from tests.support.prometheus import ALERTS, run


def test_the_rules_are_sound() -> None:
    assert "SUCCESS" in run("promtool", "check", "rules", "--lint-fatal", ALERTS / "rules.yml")


def test_the_rules_do_what_they_say(tmp_path: Path) -> None:
    shutil.copy(ALERTS / "rules.yml", tmp_path)
    shutil.copy(Path(__file__).with_name("rules_test.yml"), tmp_path)
    run("promtool", "test", "rules", tmp_path / "rules_test.yml")


def test_the_example_of_a_configuration_is_sound(tmp_path: Path) -> None:
    for file in ("rules.yml", "prometheus.yml"):
        shutil.copy(ALERTS / file, tmp_path)
    for secret in ("skerry-token", "skerry-ca.pem"):
        (tmp_path / secret).touch()
    assert "SUCCESS" in run("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_the_alertmanagers_example_is_sound() -> None:
    assert "SUCCESS" in run("amtool", "check-config", ALERTS / "alertmanager.yml")
