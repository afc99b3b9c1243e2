"""The dashboard: its series exist, each of its queries returns samples, and its panels do not overlap."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterator

import yaml
from scene import Scene
from tools import DEPLOY, output

GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {"$__rate_interval": "5s", "$__interval": "5s", "$__range": "1m", "$job": ".*", "$instance": ".*"}
# Such events do not occur in this test.
MAY_BE_EMPTY = {"Requests rejected", "Starts"}


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def filled_in(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression, f"a variable without a value: {expression}"
    return expression


def test_every_query_returns_samples_on_a_real_prometheus(scene: Scene) -> None:
    seen = 0
    for title, expression in expressions():
        samples = scene.query(filled_in(expression))
        assert samples or title in MAY_BE_EMPTY, f"{title}: no samples for {expression}"
        seen += 1
    assert seen > 50


def test_the_dashboard_uses_existing_series_only(scene: Scene) -> None:
    names = {name for _, e in expressions() for name in re.findall(r"\b(?:heartbeat_sidecar|process)_\w+", e)}
    exposed = {sample.name for sample in scene.sidecar.metrics().samples}
    assert len(names) > 20 and names <= exposed, f"not exposed: {names - exposed}"


def test_the_panel_and_the_alert_count_unacked_heartbeats_equally(tmp_path: Path) -> None:
    """Covers a stall, for which acks_withheld_total counts eight heartbeats, and the mode "forward"."""
    [panel] = [panel for panel in PANELS if panel["title"] == "Heartbeats without an ack"]
    [target] = panel["targets"]
    alert = "avg(instance:heartbeat_sidecar_heartbeats_unacked:ratio_rate5m)"
    shown = filled_in(target["expr"]).replace("[5s]", "[5m]")
    tests = []
    for name, acks, stalled, policy, ratio in [
        ("stalled", "0+6x5 30x25", "0x5 8x25", "0x30", 1),
        ("forward", "0x30", "0x30", "0+6x30", 0),
    ]:
        series = {
            "heartbeats_total{%s}": "0+6x30",
            'acks_total{%s, origin="sidecar"}': acks,
            'acks_withheld_total{%s, reason="upstream_stalled"}': stalled,
            'acks_withheld_total{%s, reason="policy"}': policy,
        }
        labels = 'job="heartbeat-sidecar", instance="a:9600"'
        named = {f"heartbeat_sidecar_{name % labels}": values for name, values in series.items()}
        samples = [{"labels": "{}", "value": ratio}]
        tests.append(
            {
                "name": name,
                "interval": "1m",
                "input_series": [{"series": one, "values": values} for one, values in named.items()],
                "promql_expr_test": [
                    {"expr": expr, "eval_time": "20m", "exp_samples": samples} for expr in (shown, alert)
                ],
            }
        )
    rules = str(DEPLOY / "prometheus" / "rules.yml")
    unit = {"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "panel.test.yml").write_text(json.dumps(unit))
    assert "SUCCESS" in output("promtool", "test", "rules", tmp_path / "panel.test.yml")


def test_the_connection_timeouts_in_the_dashboard_are_bucket_bounds(scene: Scene) -> None:
    bounds = {le for _, e in expressions() for le in re.findall(r'le=~"(\d+)\(\[\.\]0\)\?"', e)}
    buckets = [s for s in scene.sidecar.metrics().samples if s.name.endswith("session_duration_seconds_bucket")]
    assert {"30", "60", "240", "3600"} <= bounds <= {bucket.labels["le"] for bucket in buckets}


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and (x, y) not in taken, f"{panel['title']} overlaps {taken.get((x, y))}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_provisioned_files_are_where_compose_mounts_them() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/heartbeat-sidecar.yaml").read_text())["providers"]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    services = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"]
    assert any(f":{provider['options']['path']}/" in volume for volume in services["grafana"]["volumes"])
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
