"""What the design promises about the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TOP
from dvc.repo import Repo
from ruamel.yaml import YAML

PACKAGE = TOP / "src" / "feature_survival"
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = [
    "schema",
    "recipes",
    "thresholds",
    "catalogue",
    "config",
    "atomic",
    "artifacts",
    "progress",
    "text",
    "corpus",
    "hub",
    "models",
    "forward",
    "pretrain",
    "compression",
    "activations",
    "sae",
    "contexts",
    "page",
    "trainers",
    "matching",
    "stats",
    "metrics",
    "summarize",
    "figures",
    "environment",
    "timeline",
    "tables",
    "claims",
    "stages",
    "launch",
    "plan",
    "audit",
    "report",
    "check",
    "inputs",
    "dvclock",
    "remotes",
    "grid",
    "quick",
    "verify",
    "cli",
]
# What numbers do not depend on but by what a stage's parameters or its base say.
INFRASTRUCTURE = {"schema.py", "catalogue.py", "config.py", "atomic.py", "artifacts.py", "progress.py", "hub.py"}


STAGES = sorted(file.stem for file in (PACKAGE / "stages").glob("*.py") if file.stem != "__init__")
# What a stage imports by way of other modules and leaves alone, or only reads what is fetched with.
NOT_RUN = {"sae": {"models.py", "forward.py"}, "base": {"activations.py", "sae.py"}}


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def imported(file: Path) -> Iterator[str]:
    """Dotted modules of the package that a file imports, at any level, without the package's name."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            if module.startswith("feature_survival."):
                yield module.removeprefix("feature_survival.")


def source_of(module: str) -> str:
    """`compression.masks.pack` -> `compression/masks.py`."""
    parts = module.split(".")
    while parts:
        path = PACKAGE.joinpath(*parts)
        if path.with_suffix(".py").exists():
            return name(path.with_suffix(".py"))
        if (path / "__init__.py").exists():
            return name(path / "__init__.py")
        parts.pop()
    raise AssertionError(f"{module} is no module of the package")


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parent != PACKAGE or file.stem != "__init__"], ids=name
)
def test_each_module_imports_only_modules_before_it(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(file):
        other = module.split(".")[0]
        same_package = other == own and file.parent != PACKAGE
        assert same_package or ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_module_is_longer_than_350_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 350


@pytest.fixture(scope="module")
def stages() -> dict[str, Any]:
    return YAML(typ="safe").load(TOP / "dvc.yaml")["stages"]


def sources(stage: dict[str, Any], figures: list[str]) -> list[str]:
    """A stage's dependencies inside src, `${item}` filled in for figures."""
    stage = stage.get("do", stage)
    named = [dependency for dependency in stage["deps"] if dependency.startswith("src/")]
    return [path.replace("${item}", figure) for path in named for figure in figures]


def test_every_source_that_dvc_names_exists(stages: dict[str, Any], shipped: dict[str, Any]) -> None:
    for stage, content in stages.items():
        for path in sources(content, shipped["study"]["figures"]):
            assert (TOP / path).exists(), f"{stage}: {path}"


def needed_by(source: str) -> set[str]:
    """A source and all it imports, by way of other modules too; what is behind infrastructure does not count."""
    found, ahead = set(), {source}
    while ahead:
        found |= ahead
        ahead = {source_of(module) for file in ahead for module in imported(PACKAGE / file)} - INFRASTRUCTURE - found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_source_it_imports_at_any_distance(stages: dict[str, Any], stage: str) -> None:
    assert stage in stages, f"dvc.yaml has no stage {stage}"
    needed = needed_by(f"stages/{stage}.py") - NOT_RUN.get(stage, set())
    named = {path.removeprefix("src/feature_survival/") for path in sources(stages[stage], [""])}
    assert not needed - named


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_started_by_its_own_subcommand(stages: dict[str, Any], stage: str) -> None:
    assert stages[stage]["cmd"].split()[:2] == ["feature-survival", stage]


def test_no_stage_has_a_parameter_name_that_dvc_confuses(shipped: dict[str, Any]) -> None:
    def keys(content: Any) -> Iterator[str]:
        if isinstance(content, dict):
            for key, value in content.items():
                yield key
                yield from keys(value)

    assert not {"size", "nfiles"} & set(keys(shipped))


def test_dvc_lock_has_the_stages_of_the_graph_and_no_others() -> None:
    with Repo(str(TOP)) as repo:
        graph = {stage.addressing for stage in repo.index.stages} - {"data.dvc"}
    assert set(YAML(typ="safe").load(TOP / "dvc.lock")["stages"]) == graph
