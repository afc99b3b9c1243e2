"""The manifests and the kustomize component are valid, and consistent with each other and with the sidecar."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from manifests import check_native_pod, check_sidecar, validate, validate_monitoring
from support.sidecar import REPOSITORY
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
    # The job label of its series is NAMESPACE/NAME, and the alert for a dead target matches it.
    assert monitor["metadata"]["name"] == "heartbeat-sidecar" and "jobLabel" not in monitor["spec"]


def test_the_pod_starts_and_ends_in_order() -> None:
    check_native_pod(POD["spec"])


def test_all_manifests_select_the_pod() -> None:
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


def test_the_network_policy_opens_the_admin_port_to_monitoring_and_the_apps_port_to_nothing() -> None:
    public, monitoring = MANIFESTS["networkpolicy"]["spec"]["ingress"]
    served = MANIFESTS["service"]["spec"]["ports"][0]["targetPort"]
    assert "from" not in public and public["ports"] == [{"port": served}]
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


def test_the_documented_kustomization_sets_image_and_watchdog(bundled: Bundled, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    [kustomization] = re.findall(r"^```yaml\n# kustomization.yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    shutil.copytree(DEPLOY / "kubernetes", tmp_path / "kubernetes")
    (tmp_path / "kubernetes" / "example" / "kustomization.yaml").write_text(kustomization)
    built = output(bundled.kubectl, "kustomize", tmp_path / "kubernetes" / "example")
    pod = only(documents(built), kind="Deployment")["spec"]["template"]["spec"]
    check_native_pod(pod)
    [sidecar] = pod["initContainers"]
    assert sidecar["image"] == "registry.example.com/heartbeat-sidecar:0.1.0"
    assert check_sidecar(sidecar)["watchdog.mode"] == "self"


SLEEP = {"sleep": {"seconds": 20}}
UPSTREAM = "heartbeat-sidecar/upstream"
OWN = {"heartbeat-sidecar/lifecycle": "own"}
CLEAN_UP = {"exec": {"command": ["/clean-up"]}}
WARM_UP = {"httpGet": {"path": "/warm-up", "port": 8501}}
HELPER = {"name": "helper", "image": "helper:1", "env": [{"name": "A", "value": "b"}]}


def container(**more: Any) -> dict[str, Any]:
    return {"name": "app", "image": "app:1", **more}


def workload(
    name: str,
    *containers: dict[str, Any],
    kind: str = "Deployment",
    annotations: dict[str, str] | None = None,
    **pod: Any,
) -> dict[str, Any]:
    """A workload with the label that selects it for the sidecar."""
    spec: dict[str, Any] = {"selector": {"matchLabels": {"app": name}}}
    if kind == "StatefulSet":
        spec["serviceName"] = name
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": list(containers or [container()]), **pod}}
    metadata = {"name": name, "labels": {"heartbeat-sidecar": "enabled"}, "annotations": {"team": "sales"} | (annotations or {})}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": metadata, "spec": {**spec, "template": template}}


WORKLOADS = [
    workload("plain"),
    workload("stateful", kind="StatefulSet"),
    workload("everywhere", kind="DaemonSet"),
    workload("long-grace-period", terminationGracePeriodSeconds=300),
    workload("short-grace-period", kind="StatefulSet", terminationGracePeriodSeconds=10),
    workload("other-port", container(ports=[{"containerPort": 8080}]), annotations={UPSTREAM: "http://127.0.0.1:8080"}),
    workload("socket", annotations={UPSTREAM: "unix:/run/app.sock"}, volumes=[{"name": "run", "emptyDir": {}}]),
    workload("own-pre-stop", container(lifecycle={"preStop": CLEAN_UP}), annotations=OWN),
    workload("own-post-start", container(lifecycle={"postStart": WARM_UP, "preStop": SLEEP}), annotations=OWN),
    workload("own-sleep", container(lifecycle={"preStop": {"sleep": {"seconds": 90}}}), annotations=OWN),
    workload("two", container(), HELPER | {"lifecycle": {"preStop": CLEAN_UP}}, kind="StatefulSet"),
    workload("init-containers", initContainers=[HELPER, HELPER | {"name": "another", "restartPolicy": "Always"}]),
    workload(
        "everything",
        container(lifecycle={"postStart": WARM_UP, "preStop": CLEAN_UP}, ports=[{"containerPort": 80, "name": "web"}]),
        HELPER,
        kind="StatefulSet",
        annotations={UPSTREAM: "http://127.0.0.1:80", **OWN},
        initContainers=[HELPER | {"name": "migrate"}],
        terminationGracePeriodSeconds=120,
        securityContext={"fsGroup": 7},
        nodeSelector={"disk": "ssd"},
        volumes=[{"name": "data", "emptyDir": {}}],
    ),
]


def build(bundled: Bundled, directory: Path, *resources: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Runs kustomize on these resources with the component."""
    shutil.copytree(DEPLOY / "kubernetes" / "component", directory / "component")
    (directory / "resources.yaml").write_text("\n---\n".join(json.dumps(resource) for resource in resources))
    (directory / "kustomization.yaml").write_text("resources: [resources.yaml]\ncomponents: [component]\n")
    command = [str(bundled.kubectl), "kustomize", str(directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def lost(before: Any, after: Any, path: str = "") -> list[str]:
    """The parts of `before` that are missing in `after`, or in another order."""
    if isinstance(before, dict) and isinstance(after, dict):
        missing = [f"{path}/{key}" for key in before.keys() - after.keys()]
        shared = before.keys() & after.keys()
        return missing + [part for key in shared for part in lost(before[key], after[key], f"{path}/{key}")]
    if isinstance(before, list) and isinstance(after, list):
        rest = iter(after)
        found = (any(not lost(wanted, candidate) for candidate in rest) for wanted in before)
        return [f"{path}/{number}" for number, is_there in enumerate(found) if not is_there]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


@pytest.mark.parametrize("before", WORKLOADS, ids=lambda workload: workload["metadata"]["name"])
def test_the_component_adds_a_sidecar_and_removes_nothing(
    bundled: Bundled, tmp_path: Path, before: dict[str, Any]
) -> None:
    done = build(bundled, tmp_path, before)
    assert done.returncode == 0, done.stderr
    (tmp_path / "built.yaml").write_text(done.stdout)
    validate(tmp_path / "built.yaml")
    [after] = documents(done.stdout)
    assert not lost(before, after)
    pod, had = after["spec"]["template"]["spec"], before["spec"]["template"]["spec"]
    sidecar, *others = pod["initContainers"]
    assert (sidecar["name"], sidecar["restartPolicy"]) == ("heartbeat-sidecar", "Always")
    wanted = before["metadata"]["annotations"].get(UPSTREAM, "http://127.0.0.1:8501")
    assert check_sidecar(sidecar)["upstream"] == wanted
    # The only other addition is a preStop sleep, if the workload has no lifecycle.
    assert others == had.get("initContainers", []) and pod["containers"][1:] == had["containers"][1:]
    assert pod["containers"][0] == {"lifecycle": {"preStop": SLEEP}} | had["containers"][0]
    assert pod.get("terminationGracePeriodSeconds") == had.get("terminationGracePeriodSeconds")


def test_the_component_patches_all_labelled_workloads_and_no_other(bundled: Bundled, tmp_path: Path) -> None:
    unlabelled = workload("unlabelled", container(lifecycle={"preStop": CLEAN_UP}))
    unlabelled["metadata"]["labels"] = {"heartbeat-sidecar": "disabled"}
    done = build(bundled, tmp_path, *WORKLOADS, unlabelled)
    assert done.returncode == 0, done.stderr
    found = documents(done.stdout)
    assert unlabelled in found and len(found) == len(WORKLOADS) + 1
    for before in WORKLOADS:
        [after] = [each for each in found if each["metadata"]["name"] == before["metadata"]["name"]]
        assert not lost(before, after)
        assert after["spec"]["template"]["spec"]["initContainers"][0]["name"] == "heartbeat-sidecar"


@pytest.mark.parametrize("lifecycle", [{"preStop": CLEAN_UP}, {"postStart": WARM_UP}, {"preStop": SLEEP}])
def test_a_lifecycle_without_the_annotation_fails_the_build(
    bundled: Bundled, tmp_path: Path, lifecycle: dict[str, Any]
) -> None:
    done = build(bundled, tmp_path, workload("no-annotation", container(lifecycle=lifecycle)))
    assert done.returncode != 0 and "/spec/template/spec/containers/0/lifecycle failed" in done.stderr, done.stdout


def test_services_keep_everything_but_the_target_port(bundled: Bundled, tmp_path: Path) -> None:
    ports = [{"name": "web", "port": 80, "targetPort": 8501}, {"name": "other", "port": 81, "targetPort": "other"}]
    metadata = {"name": "app", "labels": {"heartbeat-sidecar": "enabled", "team": "sales"}}
    spec = {"selector": {"app": "app"}, "ports": ports, "sessionAffinity": "ClientIP"}
    done = build(bundled, tmp_path, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    [after] = documents(done.stdout)
    assert after["spec"]["ports"][0].pop("targetPort") == 8500
    ports[0].pop("targetPort")
    assert after["spec"] == spec and after["metadata"] == metadata
