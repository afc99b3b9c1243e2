"""The image and the compose file, as far as they can be checked without Docker."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jsonschema
import yaml
from support.sidecar import REPOSITORY
from tools import DEPLOY, Bundled, effective, output, script

DOCKER = DEPLOY / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]  # type: ignore[misc]


def test_hadolint_finds_nothing() -> None:
    assert output(script("hadolint"), DOCKER / "Dockerfile", DOCKER / "app" / "Dockerfile") == ""


def test_the_last_stage_contains_binary_and_ca_certificates_and_runs_unprivileged() -> None:
    found = instructions(DOCKER / "Dockerfile")
    stage = found[max(n for n, (word, _) in enumerate(found) if word == "FROM") :]
    assert stage[0] == ("FROM", "scratch")
    # An image from scratch has no CA certificates, which an `https://` app needs.
    roots = "/etc/ssl/certs/ca-certificates.crt"
    copied = [rest for word, rest in stage if word == "COPY"]
    assert copied == [f"--from=build {path} {path}" for path in ("/heartbeat-sidecar", roots)]
    assert re.search(r"apt-get install [^&]*\bca-certificates\b", str(found))
    assert ("USER", "65534:65534") in stage and "RUN" not in dict(stage)
    # The shell form needs a shell, and the image has none.
    assert json.loads(dict(stage)["ENTRYPOINT"]) == ["/heartbeat-sidecar"] and json.loads(dict(stage)["CMD"]) == ["run"]


def test_the_build_copies_everything_that_cargo_needs(tmp_path: Path) -> None:
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [rest.split()[:-1] for word, rest in instructions(DOCKER / "Dockerfile") if word == "COPY"]
    names = [name for group in copied for name in group if not name.startswith(("--from", "/"))]
    assert "src" in names and {f"!{name}" for name in names} == {line for line in ignored if line.startswith("!")}
    for name in names:
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    metadata = output("cargo", "metadata", "--locked", "--offline", "--no-deps", "--format-version=1", cwd=tmp_path)
    assert '"name":"heartbeat-sidecar"' in metadata


def test_compose_is_valid_and_its_mounts_exist(bundled: Bundled) -> None:
    schema = json.loads(bundled.compose_schema.read_text())
    # The draft is named explicitly: the schema declares 2019-09.
    jsonschema.Draft201909Validator(schema).validate(COMPOSE)
    mounts = [v.split(":")[0] for s in COMPOSE["services"].values() for v in s.get("volumes", [])]
    builds = [s["build"] for s in COMPOSE["services"].values() if "build" in s]
    contexts = [build if isinstance(build, str) else build["context"] for build in builds]
    assert mounts and contexts
    for path in mounts + contexts:
        assert (DOCKER / path).exists(), path
    assert (DOCKER / COMPOSE["services"]["sidecar"]["build"]["context"] / "deploy/docker/Dockerfile").is_file()


def test_the_addresses_in_compose_match() -> None:
    settings = effective(COMPOSE["services"]["sidecar"]["environment"])
    assert settings["upstream"] == "http://app:8501" and settings["watchdog.mode"] == "self"
    scrape = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert [target for job in scrape for static in job["static_configs"] for target in static["targets"]] == [
        f"sidecar:{settings['admin'].split(':')[1]}"
    ]
    assert COMPOSE["services"]["sidecar"]["ports"] == [f"8500:{settings['listen'].split(':')[1]}"]
