"""The example configuration files and their schema agree with `check`."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
from support.sidecar import binary
from tools import DEPLOY, PREFIX

CONFIG = DEPLOY / "config"
EXAMPLES = sorted(path.name for path in CONFIG.glob("*.toml"))
SCHEMA = json.loads((CONFIG / "schema.json").read_text())


def check(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`check` without settings from the environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return subprocess.run([binary(), "check", *arguments], capture_output=True, text=True, timeout=60, env=env)


def schema_errors(text: str) -> list[str]:
    """The schema's errors for a file."""
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(tomllib.loads(text))]


def test_the_schema_is_valid_and_equals_the_output_of_check() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert json.loads(check("--schema").stdout) == SCHEMA


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_valid_without_a_warning(name: str) -> None:
    path = CONFIG / name
    assert not schema_errors(path.read_text())
    done = check("--config", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not schema_errors(done.stdout), "the output of check must be a valid file"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


ROUTE = '[[route]]\nname = "a"\nupstream = "http://a"\n'


@pytest.mark.parametrize(
    "text",
    [
        'lisen = "0.0.0.0:8500"\n',
        'listen = "localhost:8500"\n',
        "listen = 8500\n",
        'upstream = "127.0.0.1:8501"\n',
        '[heartbeat]\nmode = "on"\n',
        '[heartbeat]\nstall_after = "5"\n',
        "[heartbeat]\nstall_after = 5\n",
        '[session]\ntakeover = "true"\n',
        '[session]\nbrowser_ping_interval = "never"\n',
        "[drain]\nclose_code = 1000\n",
        "[limits]\nsessions = -1\n",
        '[limit]\nsessions = "1"\n',
        "[route]\n",
        '[[route]]\nname = "a"\n',
        '[[route]]\nupstream = "http://a"\n',
        ROUTE + 'path = "a"\n',
        ROUTE + 'host = "a:80"\n',
        ROUTE + "[route.heartbeat]\nsoon = true\n",
        ROUTE.replace('"a"', '"a b"'),
        'upstream = "http://b"\n' + ROUTE,
        "[tls.certificates]\n",
        '[[tls.certificates]]\ncertificate = "a.crt"\n',
        '[[tls.certificates]]\ncertificate = "a.crt"\nkey = "a.key"\nname = "a"\n',
    ],
)
def test_check_rejects_what_the_schema_rejects(text: str, tmp_path: Path) -> None:
    assert schema_errors(text)
    path = tmp_path / "sidecar.toml"
    path.write_text(text)
    done = check("--config", path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "error: " in done.stderr
