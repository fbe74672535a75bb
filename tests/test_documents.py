"""What README and threat_models/ say is there: files they name exist, figures come from the committed benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autoflip_secure.data.names import DATASETS
from autoflip_secure.federation.policy_rules import rules_table

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "benchmarks/README.md",
    "docs/deploy.md",
    "protocols/audit/README.md",
    "protocols/ckks/README.md",
    "protocols/ckks/messages.md",
    "protocols/ckks/parameters.md",
    "protocols/models/README.md",
    "protocols/secagg/README.md",
    "protocols/secagg/graph.md",
    "protocols/secagg/messages.md",
    *(f"threat_models/{path.name}" for path in sorted((ROOT / "threat_models").glob("*.md"))),
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_paths_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    paths = re.findall(r"`((?:tests|autoflip_secure|protocols|benchmarks|threat_models)/[\w./-]*)`", text)
    linked = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert paths or linked
    for path in paths:
        assert (ROOT / path).exists(), f"{name} names {path}"
    for link in linked:
        assert ((ROOT / name).parent / link).exists(), f"{name} links {link}"


def test_the_table_in_the_readme_is_the_one_the_benchmark_wrote() -> None:
    written = (ROOT / "benchmarks/results/sim.md").read_text()
    rows = [
        line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| epsilon 8, pruned<br>")
    ]
    assert len(rows) == 1
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len(table) > 5
    readme = (ROOT / "README.md").read_text()
    assert "\n".join(table) in readme


def test_the_readme_names_every_data_set_and_its_folders() -> None:
    section = (ROOT / "README.md").read_text().split("## Data sets\n")[1].split("\n## ")[0]
    for name, info in DATASETS.items():
        assert f"`{name}`" in section
        places = [re.search(rf"\b{re.escape(folder)}/", section) for folder in info.subfolders]
        assert any(places) if info.either else all(places), f"the folders of {name}"


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in DOCUMENTS:
        for target in re.findall(r"`make ([\w-]+)", (ROOT / name).read_text()):
            assert re.search(rf"^[\w -]*\b{target}\b[\w -]*:", makefile, re.M), f"{name} names make {target}"


def test_the_rules_in_the_deployment_guide_are_those_of_the_code() -> None:
    assert rules_table().strip() in (ROOT / "docs/deploy.md").read_text()
