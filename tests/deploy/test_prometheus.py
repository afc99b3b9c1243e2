"""The rules: they pass promtool; each alert fires, clears and is in the runbook; a frozen app raises alerts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from scene import Scene
from support.sidecar import REPOSITORY
from tools import DEPLOY, output

PROMETHEUS = DEPLOY / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
METRIC = re.compile(r"\b(?:heartbeat_sidecar|process)_\w+")


def sections() -> dict[str, str]:
    """The runbook's text by anchor."""
    parts = re.split(r"^## (.+)$", (REPOSITORY / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    return {title.lower(): text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def test_the_rules_pass_promtool() -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in output("promtool", "check", "rules", PROMETHEUS / "rules.yml")


def test_every_alert_fires_and_clears_in_its_unit_test() -> None:
    assert "SUCCESS" in output("promtool", "test", "rules", PROMETHEUS / "rules.test.yml")
    seen: dict[str, list[bool]] = {}
    for test in yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            seen.setdefault(case["alertname"], []).append("exp_alerts" in case)
    assert seen.keys() == {alert["alert"] for alert in ALERTS}
    for name, fired in seen.items():
        assert fired[:3] == [False, True, False], f"{name} is not tested inactive, firing and inactive again: {fired}"


def add_pod_labels(value: Any) -> Any:
    """Adds namespace and pod labels to every series and alert with an instance, in a part of a unit test."""
    if isinstance(value, list):
        return [add_pod_labels(item) for item in value]
    if isinstance(value, dict):
        more = {"namespace": "apps", "pod": "pod-of-a"} if value.get("instance") == "a:9600" else {}
        return {key: add_pod_labels(item) for key, item in value.items()} | more
    if not isinstance(value, str):
        return value
    return value.replace('instance="a:9600"', 'instance="a:9600", namespace="apps", pod="pod-of-a"')


def test_alerts_name_namespace_and_pod_if_the_series_have_them(tmp_path: Path) -> None:
    unit = add_pod_labels(yaml.safe_load((PROMETHEUS / "rules.test.yml").read_text()))
    named = set()
    for test in unit["tests"]:
        for case in test["alert_rule_test"]:
            for alert in case.get("exp_alerts", []):
                if "pod" in alert["exp_labels"]:
                    summary = alert["exp_annotations"]["summary"]
                    assert summary.count("a:9600") == 1, summary
                    alert["exp_annotations"]["summary"] = summary.replace("a:9600", "apps/pod-of-a")
                    named.add(case["alertname"])
    # These two cover all sidecars of a job.
    assert named == {alert["alert"] for alert in ALERTS} - {"HeartbeatSidecarAbsent", "HeartbeatSidecarManyDown"}
    (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text())
    (tmp_path / "pods.test.yml").write_text(yaml.safe_dump(unit))
    assert "SUCCESS" in output("promtool", "test", "rules", tmp_path / "pods.test.yml")


@pytest.mark.parametrize(("down", "pages"), [(4, 0), (5, 1), (60, 1), (1000, 1)])
def test_a_dead_node_raises_one_alert_for_any_number_of_sidecars(down: int, pages: int, tmp_path: Path) -> None:
    labels = 'job="heartbeat-sidecar", cluster="north"'
    ups = [(f'up{{{labels}, instance="{n}"}}', f"1x2 {0 if n < down else 1}x10") for n in range(1000)]
    summary = f"Sidecars of job heartbeat-sidecar in cluster north that do not answer their scrape: {down}"
    [rule] = [alert for alert in ALERTS if alert["alert"] == "HeartbeatSidecarManyDown"]
    expected = {
        "exp_labels": {"cluster": "north", "job": "heartbeat-sidecar", "severity": "critical"},
        "exp_annotations": rule["annotations"] | {"summary": summary},
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in ups],
        "alert_rule_test": [{"alertname": rule["alert"], "eval_time": "8m", "exp_alerts": [expected] * pages}],
    }
    (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text())
    unit = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "node.test.yml").write_text(json.dumps(unit))
    assert "SUCCESS" in output("promtool", "test", "rules", tmp_path / "node.test.yml")


def test_every_alert_has_a_runbook_section_and_all_annotations() -> None:
    runbook = sections()
    for alert in ALERTS:
        assert alert["for"] and alert["labels"]["severity"] in ("info", "warning", "critical"), alert
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}, alert
        page, anchor = alert["annotations"]["runbook_url"].split("#")
        assert page == "docs/runbook.md" and anchor == alert["alert"].lower(), alert
        assert {"**Means**", "**Users see**"} <= set(re.findall(r"\*\*[\w ]+\*\*", runbook[anchor])), anchor
    assert len(runbook) == len(ALERTS), "a section of the runbook has no alert"


@pytest.mark.parametrize("name", ["prometheus.yml", "scrape-kubernetes.yml"])
def test_the_example_scrape_configurations_pass_promtool(name: str, tmp_path) -> None:
    config = yaml.safe_load((PROMETHEUS / name).read_text())
    for scrape in config["scrape_configs"]:
        # Debian's Prometheus has no Kubernetes discovery. The rest of the file is checked.
        if scrape.pop("kubernetes_sd_configs", None):
            scrape["static_configs"] = [{"targets": ["a:1"]}]
    (tmp_path / "rules.yml").write_text((PROMETHEUS / "rules.yml").read_text())
    (tmp_path / name).write_text(yaml.safe_dump(config))
    assert "SUCCESS" in output("promtool", "check", "config", tmp_path / name)


def test_the_rules_use_existing_series_only(scene: Scene) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    names = {name for rule in RULES for name in METRIC.findall(re.sub(r"\w+:\w+:\w+", "", rule["expr"]))}
    assert len(names) > 10
    exposed = {sample.name for sample in scene.sidecar.metrics().samples}
    assert names <= exposed, f"not exposed: {names - exposed}"
    used = {name for rule in RULES for name in re.findall(r"\w+:\w+:\w+", rule["expr"])}
    assert used <= recorded, f"not recorded: {used - recorded}"


def test_alerts_fire_while_the_app_is_frozen_and_clear_after_it_resumes(scene: Scene) -> None:
    scene.wait_until(lambda: not scene.firing(), "an alert fires while the app is healthy")
    expected = {f"HeartbeatSidecar{name}" for name in ("UpstreamStalled", "UpstreamUnreachable", "AcksWithheld")}
    with scene.app.frozen():
        scene.wait_until(lambda: expected <= scene.firing(), f"not all of {expected} fired")
    scene.wait_until(lambda: not scene.firing(), "not all alerts cleared")
