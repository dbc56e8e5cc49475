"""deploy/prometheus: every alert was seen to fire and to stay quiet."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

import pytest
import yaml

from tests.deploy.promql import DEPLOY, rules

FOLDER = DEPLOY / "prometheus"
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
NO_PROMTOOL = "promtool is not installed (Debian: apt-get install prometheus)"


def promtool(*arguments: str) -> str:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip(NO_PROMTOOL)
    ran = subprocess.run(
        [binary, *arguments], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_every_alert_has_a_test_that_fires_and_one_that_stays_quiet() -> None:
    fires: Counter[str] = Counter()
    quiet: Counter[str] = Counter()
    for file in TESTS:
        for case in yaml.safe_load(file.read_text())["tests"]:
            for alert in case["alert_rule_test"]:
                (fires if alert["exp_alerts"] else quiet)[alert["alertname"]] += 1
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert set(fires) == set(quiet) == alerts


def test_alerts_say_how_bad_it_is_and_what_is_the_matter() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"] and rule["for"]


def test_the_goals_of_rules_and_boards_are_the_same() -> None:
    from deploy.grafana.latency import FIRST_TOKEN_GOAL_S, INTER_TOKEN_GOAL_S

    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}
    assert f'le="{FIRST_TOKEN_GOAL_S}"' in recorded["model:ttft_missed:ratio5m"]
    assert f'le="{INTER_TOKEN_GOAL_S}"' in recorded["model:itl_missed:ratio5m"]


@pytest.mark.check
def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    assert "rules found" in promtool("check", "rules", "recording.yml", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


@pytest.mark.check
def test_the_alerts_fire_when_they_should() -> None:
    assert promtool("test", "rules", *map(str, TESTS)).count("SUCCESS") == len(TESTS)
