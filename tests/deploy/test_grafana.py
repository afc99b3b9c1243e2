"""The dashboard: it names what exists, each of its queries gives something, and its parts stand beside each other."""

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
# Nothing of the kind has happened here.
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
    assert "$" not in expression, f"a variable that nobody sets: {expression}"
    return expression


def test_every_query_gives_something_on_a_real_prometheus(scene: Scene) -> None:
    seen = 0
    for title, expression in expressions():
        samples = scene.query(filled_in(expression))
        assert samples or title in MAY_BE_EMPTY, f"{title}: nothing for {expression}"
        seen += 1
    assert seen > 50


def test_it_names_only_series_that_exist(scene: Scene) -> None:
    names = {name for _, e in expressions() for name in re.findall(r"\b(?:heartbeat_sidecar|process)_\w+", e)}
    exposed = {sample.name for sample in scene.sidecar.metrics().samples}
    assert len(names) > 20 and names <= exposed, f"not exposed: {names - exposed}"


def test_heartbeats_without_an_ack_are_counted_as_the_alert_counts_them(tmp_path: Path) -> None:
    """A stall, of which acks_withheld_total counts eight heartbeats; and mode "forward", in which the app alone answers."""
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


def test_the_cliffs_are_bounds_of_buckets(scene: Scene) -> None:
    cliffs = {le for _, e in expressions() for le in re.findall(r'le=~"(\d+)\(\[\.\]0\)\?"', e)}
    buckets = [s for s in scene.sidecar.metrics().samples if s.name.endswith("connection_duration_seconds_bucket")]
    assert {"30", "60", "240", "3600"} <= cliffs <= {bucket.labels["le"] for bucket in buckets}


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place: dict[str, Any] = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and (x, y) not in taken, f"{panel['title']} lies on {taken.get((x, y))}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_what_is_provisioned_is_where_compose_mounts_it() -> None:
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/heartbeat-sidecar.yaml").read_text())["providers"]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    services = yaml.safe_load((DEPLOY / "docker/compose.yaml").read_text())["services"]
    assert any(f":{provider['options']['path']}/" in volume for volume in services["grafana"]["volumes"])
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
