"""Checks for every pod with a sidecar: plain manifest, kustomize component or chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule
from tools import effective, environment_of, output, script


def seconds(text: str) -> int:
    assert text.endswith("s") and text[:-1].isdigit(), f"{text} is not in seconds"
    return int(text[:-1])


def validate(path: Path) -> None:
    """Validates against the schemas of Kubernetes, which reject unknown keys."""
    printed = output(script("kubernetes-validate"), "--strict", "--no-warn", path)
    assert "passed" in printed, printed


def validate_monitoring(manifest: dict[str, Any]) -> None:
    """Validates against the operator's schemas. They drop unknown keys, so the result must equal the manifest."""
    model = {"PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}[manifest["kind"]].model_validate(manifest)
    assert model.model_dump(by_alias=True, exclude_unset=True, mode="json") == manifest


def check_sidecar(container: dict[str, Any]) -> dict[str, str]:
    """Checks settings, ports, probes and privileges of the container; returns the settings that the sidecar reads."""
    settings = effective(environment_of(container))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"hs-http": _port(settings["listen"]), "hs-admin": _port(settings["admin"])}
    assert settings["admin"].startswith("0.0.0.0:"), "the kubelet and Prometheus cannot reach the loopback"
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert probes["startup"] == probes["liveness"] == {"path": "/livez", "port": "hs-admin"}
    assert probes["readiness"] == {"path": "/readyz", "port": "hs-admin"}
    rights = container["securityContext"]
    assert rights["runAsUser"] == 65534 and rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert seconds(settings["drain.delay"]) + seconds(settings["drain.window"]) < seconds(settings["drain.timeout"])
    return settings


def check_native_pod(pod: dict[str, Any]) -> None:
    """The sidecar starts before the app. The app runs until the drain is over, the pod until both have ended."""
    [sidecar], [app] = pod["initContainers"], pod["containers"]
    settings = check_sidecar(sidecar)
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["lifecycle"] == {"preStop": {"exec": {"command": ["/heartbeat-sidecar", "drain"]}}}
    assert settings["upstream"] == "http://127.0.0.1:8501"
    drained = seconds(settings["drain.timeout"])
    assert app["lifecycle"]["preStop"]["sleep"]["seconds"] >= drained
    # 10 s for the app to end; the sidecar has drained by then.
    assert pod.get("terminationGracePeriodSeconds", 30) >= app["lifecycle"]["preStop"]["sleep"]["seconds"] + 10


def _port(address: str) -> int:
    return int(address.rsplit(":", 1)[1])
