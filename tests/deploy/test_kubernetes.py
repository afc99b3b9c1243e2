"""The manifests and the kustomize component: valid, and of one mind with each other and with the sidecar."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import check_native_pod, validate, validate_monitoring
from tools import DEPLOY, Bundled, documents, only, output

PLAIN = DEPLOY / "kubernetes" / "plain"
MANIFESTS = {path.stem: documents(path.read_text())[0] for path in sorted(PLAIN.iterdir())}
POD = MANIFESTS["deployment"]["spec"]["template"]


@pytest.mark.parametrize("name", sorted(MANIFESTS.keys() - {"podmonitor"}))
def test_a_manifest_is_valid(name: str) -> None:
    validate(PLAIN / f"{name}.yaml")


def test_the_pod_monitor_is_valid_and_finds_the_port() -> None:
    monitor = MANIFESTS["podmonitor"]
    validate_monitoring(monitor)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= POD["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in [port["name"] for port in POD["spec"]["initContainers"][0]["ports"]]
    # The job of its series is NAMESPACE/NAME, which the alert for a dead target knows.
    assert monitor["metadata"]["name"] == "heartbeat-sidecar" and "jobLabel" not in monitor["spec"]


def test_the_pod_starts_and_ends_in_order() -> None:
    check_native_pod(POD["spec"])


def test_all_manifests_mean_that_pod() -> None:
    labels = POD["metadata"]["labels"].items()
    for selector in (
        MANIFESTS["deployment"]["spec"]["selector"]["matchLabels"],
        MANIFESTS["service"]["spec"]["selector"],
        MANIFESTS["networkpolicy"]["spec"]["podSelector"]["matchLabels"],
        MANIFESTS["poddisruptionbudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels
    scaled = MANIFESTS["horizontalpodautoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert scaled == MANIFESTS["deployment"]["metadata"]["name"]


def test_only_monitoring_reaches_the_admin_port_and_nobody_the_app() -> None:
    everyone, monitoring = MANIFESTS["networkpolicy"]["spec"]["ingress"]
    served = MANIFESTS["service"]["spec"]["ports"][0]["targetPort"]
    assert "from" not in everyone and everyone["ports"] == [{"port": served}]
    assert monitoring["from"] and monitoring["ports"] == [{"port": 9600}]


def test_the_component_adds_the_sidecar_of_the_plain_manifests(bundled: Bundled, tmp_path: Path) -> None:
    built = output(bundled.kubectl, "kustomize", DEPLOY / "kubernetes" / "example")
    (tmp_path / "built.yaml").write_text(built)
    validate(tmp_path / "built.yaml")
    deployment, service = (only(documents(built), kind=kind) for kind in ("Deployment", "Service"))
    pod = deployment["spec"]["template"]
    check_native_pod(pod["spec"])
    assert pod["spec"]["initContainers"] == POD["spec"]["initContainers"]
    assert pod["metadata"]["labels"]["heartbeat-sidecar"] == "enabled"
    assert service["spec"]["ports"][0]["targetPort"] == 8500
    assert pod["spec"]["containers"][0]["image"] == "sales-report:2024.1"
