"""Runs the commands of the documents: every `sh` block, in the order of its page, in front of a real app.

Invariant: the first line of a block that is not run names what it needs.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
from pathlib import Path

import pytest
from support.process import Process
from support.sidecar import REPOSITORY, binary
from support.streamlit_server import APP, StreamlitServer
from tools import PREFIX, Bundled, output

PAGES = sorted(path for path in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
NEEDS = "# needs "
MISSING = {"a cluster", "Docker", "root and systemd", "some minutes"}
SECONDS = 120

# Replacements for `cargo`, `tests/run` and `streamlit`. The build is done already.
CARGO = '#!/bin/sh -e\n[ "$1 $2" = "build --release" ] && exit\n[ "$1 $2 $3" = "run --release --" ]\nshift 3\nexec {binary} "$@"\n'
NOTHING = "#!/bin/sh\n"
STREAMLIT = '#!/bin/sh\nexec {python} -m streamlit "$@"\n'


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def runnable(page: Path) -> list[str]:
    return [block for block in blocks(page) if not block.startswith(NEEDS)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def workplace(directory: Path, app: StreamlitServer, bundled: Bundled) -> None:
    """Creates a reader's directory: the repository's files, a build, an app, and the tools in the PATH."""
    for name in ("deploy", "docs"):
        (directory / name).symlink_to(REPOSITORY / name)
    (directory / "app.py").symlink_to(APP)
    (directory / "target" / "release").mkdir(parents=True)
    (directory / "bin").mkdir()
    for path in ("target/release/heartbeat-sidecar", "bin/heartbeat-sidecar"):
        (directory / path).symlink_to(binary())
    executable(directory / "bin" / "cargo", CARGO.format(binary=binary()))
    executable(directory / "bin" / "streamlit", STREAMLIT.format(python=app.python))
    executable(directory / "tests" / "run", NOTHING)
    for tool in (bundled.helm, bundled.kubectl):
        (directory / "bin" / tool.name).symlink_to(tool)


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_every_command_of_a_page_succeeds(page: Path, app: StreamlitServer, bundled: Bundled, tmp_path: Path) -> None:
    workplace(tmp_path, app, bundled)
    text = "\n".join(runnable(page))
    served = free_port() if "streamlit run" in text else app.address.rpartition(":")[2]
    ports = {"8500": free_port(), "8501": served, "9600": free_port()}
    for shown, here in ports.items():
        text = re.sub(rf"\b{shown}\b", here, text)
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    env |= {
        "PATH": f"{tmp_path / 'bin'}:{env['PATH']}",
        "HOME": str(tmp_path),
        "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
        f"{PREFIX}LISTEN": f"127.0.0.1:{ports['8500']}",
        f"{PREFIX}ADMIN": f"127.0.0.1:{ports['9600']}",
    }
    reader = Process(page.name, ["bash", "-euxo", "pipefail", "-c", text], env, cwd=tmp_path)
    try:
        assert reader.wait(SECONDS) == 0, reader.transcript()
    finally:
        reader.stop()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_that_is_not_run_names_a_known_requirement(page: Path) -> None:
    skipped = [block.splitlines()[0].removeprefix(NEEDS) for block in blocks(page) if block.startswith(NEEDS)]
    assert set(skipped) <= MISSING


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_inline_command_uses_existing_flags(page: Path) -> None:
    for text in re.findall(r"`heartbeat-sidecar ([a-z][^`]*)`", page.read_text()):
        command, *arguments = shlex.split(text)
        known = output(binary(), command, "--help")
        for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert re.search(rf"^\s+{flag}\b", known, flags=re.MULTILINE), f"{command} has no {flag}"
