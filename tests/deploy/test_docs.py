"""The documents: every file, link, metric and setting in them exists, and their figures match a running sidecar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from manifests import validate_monitoring
from scene import Scene
from support.sidecar import REPOSITORY
from tools import effective, output

DOCS = REPOSITORY / "docs"
OTHERS = ["README.md", "SECURITY.md", "CHANGELOG.md", "tests/README.md", "benches/README.md"]
PAGES = sorted(f"docs/{path.name}" for path in DOCS.glob("*.md")) + OTHERS
OURS = "heartbeat_sidecar_"
SUFFIXES = r"(?:_total|_seconds|connections|connections_limit|sessions|draining|build_info)"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, spaces as hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_has_a_target(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (REPOSITORY / name).read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        target = ((REPOSITORY / name).parent / path).resolve() if path else REPOSITORY / name
        assert target.exists() and (not anchor or anchor in anchors(target)), link


@pytest.mark.parametrize("name", PAGES)
def test_every_named_deploy_file_exists(name: str) -> None:
    named = set(re.findall(r"(?<!/)\bdeploy/[\w./-]*\w", (REPOSITORY / name).read_text()))
    found = {path for path in named if next(REPOSITORY.glob(f"{path}*"), None)}
    # "deploy/NAME" is kubectl's notation for a Deployment.
    assert named - found <= {"deploy/sales-report"}


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/ARCHITECTURE.md"])
def test_every_named_source_file_exists(name: str) -> None:
    named = set(re.findall(r"`([\w/]+\.(?:rs|py|js))\b", (REPOSITORY / name).read_text()))
    files = [str(path) for folder in ("src", "tests") for path in (REPOSITORY / folder).rglob("*.*")]
    missing = [path for path in named if not any(file.endswith(f"/{path}") for file in files)]
    assert named and not missing


def test_the_architecture_lists_every_module_above_those_that_it_imports() -> None:
    layers = (REPOSITORY / "tests" / "layers.rs").read_text()
    imports = {module: set(names.split()) for module, names in re.findall(r'\("(\w+)", "([^"]*)"\)', layers)}
    section = (DOCS / "ARCHITECTURE.md").read_text().partition("\n## Layers\n")[2].partition("\n## ")[0]
    rows = [set(re.findall(r"`(\w+)`", row)) for row in re.findall(r"^\| (`[^|]*)\|", section, flags=re.MULTILINE)]
    assert set().union(*rows) == imports.keys() - {"lib"}
    for number, row in enumerate(rows):
        below = set().union(*rows[number:])
        assert all(imports[module] <= below for module in row), row


# The page of logs names fields of log lines instead.
@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/logs.md"])
def test_every_named_metric_exists(scene: Scene, name: str) -> None:
    text = (REPOSITORY / name).read_text()
    named = {found.removeprefix(OURS) for found in re.findall(rf"`([a-z_]+{SUFFIXES})\b", text)}
    samples = scene.sidecar.metrics().samples
    exposed = {re.sub(r"_(bucket|sum|count)$", "", sample.name).removeprefix(OURS) for sample in samples}
    assert named <= exposed, f"not exposed: {named - exposed}"


@pytest.mark.parametrize("name", PAGES)
def test_every_named_setting_exists(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    named = set(re.findall(r"`((?:heartbeat|session|drain|watchdog|limits)\.(?!rs)[a-z_]+)", text))
    known = effective({"HEARTBEAT_SIDECAR_LOG_FORMAT": "json"}).keys()
    assert named <= known, f"unknown: {named - known}"


def test_the_install_command_makes_a_valid_prometheus_rule_whose_links_exist(tmp_path: Path) -> None:
    text = (DOCS / "install.md").read_text()
    [address] = re.findall(r"^(base=\S+) .*\n(sed .*)$", text, flags=re.M)
    [command] = re.findall(r"^(\{ printf .*? \}) \| kubectl", text, flags=re.M | re.S)
    (tmp_path / "deploy").symlink_to(REPOSITORY / "deploy")
    made = yaml.safe_load(output("bash", "-ec", "\n".join([*address, command]), cwd=tmp_path))
    validate_monitoring(made)
    base = address[0].removeprefix("base=")
    alerts = [rule for group in made["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].removeprefix(base).partition("#")
        assert alert["annotations"]["runbook_url"].startswith("https://") and page == "docs/runbook.md"
        assert anchor in anchors(REPOSITORY / page), anchor
    assert alerts


def test_the_number_of_series_in_the_sizing_is_correct(scene: Scene) -> None:
    [documented] = re.findall(r"^\| series \| (\d+) \|", (DOCS / "sizing.md").read_text(), flags=re.MULTILINE)
    assert len(scene.sidecar.metrics().samples) == pytest.approx(int(documented), rel=0.05)
