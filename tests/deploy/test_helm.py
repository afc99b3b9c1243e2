"""The chart: its output is valid in both forms, and it rejects invalid values."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from manifests import check_native_pod, check_sidecar, seconds, validate, validate_monitoring
from support import polling
from support.sidecar import Sidecar, binary
from tools import DEPLOY, PREFIX, Bundled, documents, effective, environment_of, only, output

HELM = DEPLOY / "helm"
CHART = HELM / "heartbeat-sidecar"
UPSTREAM = "upstream=http://streamlit-app:8501"
EVERYTHING = "podMonitor.enabled=true,podDisruptionBudget.enabled=true,networkPolicy.enabled=true"
SETTINGS = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["properties"]

ROUTES = """\
[[route]]
name = "sales"
upstream = "http://sales:8501"

[[route]]
name = "forecast"
path = "/forecast"
upstream = "http://forecast:8501"
"""


def test_helm_lint_reports_no_errors(bundled: Bundled) -> None:
    assert "0 chart(s) failed" in output(bundled.helm, "lint", "--strict", CHART, "--set", UPSTREAM)


def test_the_stand_alone_form_is_valid(bundled: Bundled, tmp_path: Path) -> None:
    text = output(bundled.helm, "template", "one", CHART, "--set", f"{UPSTREAM},{EVERYTHING}")
    found = documents(text)
    assert sorted(document["kind"] for document in found) == [
        *("Deployment", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "Service")
    ]
    validate_monitoring(only(found, kind="PodMonitor"))
    for number, document in enumerate(found):
        if document["kind"] != "PodMonitor":
            (tmp_path / f"{number}.yaml").write_text(json.dumps(document))
            validate(tmp_path / f"{number}.yaml")
    pod = only(found, kind="Deployment")["spec"]["template"]["spec"]
    settings = check_sidecar(pod["containers"][0])
    assert settings["upstream"] == "http://streamlit-app:8501"
    assert "lifecycle" not in pod["containers"][0], "SIGTERM starts the drain, so a preStop hook is not needed"
    assert pod["terminationGracePeriodSeconds"] > int(settings["drain.timeout"].rstrip("s"))


def test_a_stand_alone_pod_drains_before_it_ends(bundled: Bundled) -> None:
    text = output(bundled.helm, "template", "one", CHART, "--set", UPSTREAM)
    [container] = only(documents(text), kind="Deployment")["spec"]["template"]["spec"]["containers"]
    given = {name.removeprefix(PREFIX): value for name, value in environment_of(container).items()}
    settings = {name: value for name, value in given.items() if name.startswith("DRAIN_")}
    with socket.create_server(("127.0.0.1", 0)) as app:
        sidecar = Sidecar("{}:{}".format(*app.getsockname()), **settings)
        started = time.monotonic()
        # As the kubelet stops it: the hook, if there is one, then SIGTERM immediately.
        hook = container.get("lifecycle", {}).get("preStop")
        if hook:
            command = [binary(), *hook["exec"]["command"][1:]]
            output(*command, env=os.environ | {f"{PREFIX}ADMIN": sidecar.admin})
        sidecar.process.signal(signal.SIGTERM)
        polling.wait_until(lambda: not sidecar.process.running, sidecar.process.transcript, 30)
    assert time.monotonic() - started >= seconds(settings["DRAIN_DELAY"]), sidecar.process.transcript()


def test_the_chart_as_a_dependency_of_another_chart_is_valid(bundled: Bundled, tmp_path: Path) -> None:
    shutil.copytree(HELM, tmp_path / "helm")
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    output(bundled.helm, "dependency", "build", tmp_path / "helm" / "example", env=home)
    assert "0 chart(s) failed" in output(bundled.helm, "lint", "--strict", tmp_path / "helm" / "example")
    text = output(bundled.helm, "template", "sales", tmp_path / "helm" / "example")
    (tmp_path / "built.yaml").write_text(text)
    validate(tmp_path / "built.yaml")
    found = documents(text)
    assert sorted(document["kind"] for document in found) == ["Deployment", "Service"]
    check_native_pod(only(found, kind="Deployment")["spec"]["template"]["spec"])


def test_the_value_config_becomes_a_file_that_the_sidecar_accepts(bundled: Bundled, tmp_path: Path) -> None:
    shutil.copytree(HELM, tmp_path / "helm")
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    output(bundled.helm, "dependency", "build", tmp_path / "helm" / "example", env=home)
    values: dict[str, Any] = {
        "config": ROUTES,
        "volumes": [{"name": "tls", "secret": {"secretName": "sales-tls"}}],
        "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
    }
    (tmp_path / "alone.yaml").write_text(json.dumps(values))
    (tmp_path / "dependency.yaml").write_text(json.dumps({"heartbeat-sidecar": values}))
    for chart, given in ((CHART, "alone.yaml"), (tmp_path / "helm" / "example", "dependency.yaml")):
        text = output(bundled.helm, "template", "one", chart, "-f", tmp_path / given)
        found = documents(text)
        for number, document in enumerate(found):
            (tmp_path / f"{number}.yaml").write_text(json.dumps(document))
            validate(tmp_path / f"{number}.yaml")
        pod = only(found, kind="Deployment")["spec"]["template"]["spec"]
        container = (pod.get("initContainers") or pod["containers"])[0]
        source = only(found, kind="ConfigMap")
        assert only(pod["volumes"], name="heartbeat-sidecar")["configMap"] == {"name": source["metadata"]["name"]}
        [(file, content)] = source["data"].items()
        (tmp_path / file).write_text(content)
        mounted = only(container["volumeMounts"], name="heartbeat-sidecar")
        assert "subPath" not in mounted, "a file mounted by subPath is never updated"
        env = environment_of(container)
        assert env["HEARTBEAT_SIDECAR_CONFIG"] == f"{mounted['mountPath']}/{file}"
        assert "HEARTBEAT_SIDECAR_UPSTREAM" not in env, "the upstream and [[route]] exclude each other"
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        checked = output(binary(), "check", env=env | {"HEARTBEAT_SIDECAR_CONFIG": str(tmp_path / file)})
        assert checked.count("[[route]]") == 2 and "warning" not in checked


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("upstream=streamlit-app:8501", "/upstream"),
        ("upstream=http://streamlit-app:8501/path", "/upstream"),
        ("standalone=perhaps", "/standalone"),
        ("replicas=-1", "/replicas"),
        ("service.port=70000", "/service/port"),
        ("settings.heartbeat\\.mode=maybe", "/settings/heartbeat.mode"),
        ("settings.drain\\.timeout=soon", "/settings/drain.timeout"),
        ("settings.heartbeat\\.moed=auto", "/settings"),
        ("networkPolicies.enabled=true", "networkPolicies"),
    ],
)
def test_an_invalid_value_is_rejected_with_its_name(bundled: Bundled, value: str, named: str) -> None:
    command = [str(bundled.helm), "template", "one", str(CHART), "--set", UPSTREAM, "--set", value]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and named in done.stderr, done.stdout + done.stderr


def test_the_stand_alone_form_requires_an_upstream(bundled: Bundled) -> None:
    command = [str(bundled.helm), "template", "one", str(CHART)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "upstream is needed" in done.stderr, done.stdout + done.stderr


def test_the_schema_contains_every_setting_and_large_numbers_stay_integers(bundled: Bundled, tmp_path: Path) -> None:
    known = effective({"HEARTBEAT_SIDECAR_LOG_FORMAT": "json"}).keys() - {"listen", "admin", "upstream"}
    assert known <= SETTINGS.keys(), f"not in the schema: {known - SETTINGS.keys()}"
    values = {"upstream": "http://a:1", "settings": {"limits.header_bytes": 1048576, "session.takeover": False}}
    (tmp_path / "values.yaml").write_text(json.dumps(values))
    text = output(bundled.helm, "template", "one", CHART, "-f", tmp_path / "values.yaml")
    settings = check_sidecar(only(documents(text), kind="Deployment")["spec"]["template"]["spec"]["containers"][0])
    assert (settings["limits.header_bytes"], settings["session.takeover"]) == ("1048576", "false")
