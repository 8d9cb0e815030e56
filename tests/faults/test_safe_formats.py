"""Nothing is ever unpickled: not by our sources, and no artifact is of a format that would need it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import TOP

PLACES = ("src", "tests", "benchmarks")
SOURCES = sorted(file for place in PLACES for file in (TOP / place).rglob("*.py"))
UNPICKLE = {  # modules and calls by which a file could run code
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("torch.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.package"),
}
FORMATS = {".safetensors", ".json", ".jsonl", ".csv", ".parquet", ".pdf", ".png", ".md", ".tex", ".html"}
MAGIC = {".parquet": b"PAR1", ".pdf": b"%PDF", ".png": b"\x89PNG"}


def calls(tree: ast.AST) -> set[str]:
    """Names of what is imported or called, as far as they are written."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("place", PLACES)
def test_no_source_unpickles(place: str) -> None:
    for file in SOURCES:
        if file.relative_to(TOP).parts[0] == place:
            tree = ast.parse(file.read_text())
            used = {name for name in calls(tree) if name in UNPICKLE or name.split(".")[0] in UNPICKLE}
            assert not used, f"{file.relative_to(TOP)}: {', '.join(sorted(used))}"
            for node in ast.walk(tree):
                if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{file}: {node.arg}"
                if isinstance(node, ast.keyword) and node.arg == "weights_only":
                    assert isinstance(node.value, ast.Constant) and node.value.value is True, f"{file}: {node.arg}"


@pytest.mark.parametrize("call", ["import pickle", "from torch import load", "import torch\ntorch.load('x')"])
def test_the_scan_finds_what_it_looks_for(call: str) -> None:
    assert calls(ast.parse(call)) & UNPICKLE


def test_every_artifact_is_of_a_format_that_holds_data_alone(finished: Path) -> None:
    """By name and first bytes: a pickle, or the zip that torch.save makes, is neither text nor any of these."""
    files = [file for top in ("artifacts", "results", "paper_figures") for file in (finished / top).rglob("*.*")]
    written = [file for file in files if file.is_file()]
    assert {file.suffix for file in written} == FORMATS - {".jsonl"}
    for file in written:
        content = file.read_bytes()
        if file.suffix in MAGIC:
            assert content.startswith(MAGIC[file.suffix]), file
        elif file.suffix == ".safetensors":
            assert content[8:9] == b"{", file  # after the length of its JSON header
        else:
            content.decode("utf-8")
