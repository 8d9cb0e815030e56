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
    *("torch.load", "torch.serialization.load", "torch.jit.load", "torch.package", "pandas.read_pickle"),
}
SAFE = {"allow_pickle": False, "trust_remote_code": False, "use_safetensors": True, "weights_only": True}
FORMATS = {".safetensors", ".json", ".jsonl", ".csv", ".parquet", ".pdf", ".png", ".md", ".tex", ".html"}
MAGIC = {".parquet": b"PAR1", ".pdf": b"%PDF", ".png": b"\x89PNG"}


def unsafe(source: str) -> list[str]:
    """What a source imports or calls that could run code of a file: as written, and with `import ... as` undone."""
    tree, names, known = ast.parse(source), set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            names.add(".".join([known.get(first, first), *rest]))
    found = sorted(name for name in names if name in UNPICKLE or name.split(".")[0] in UNPICKLE)
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg in SAFE]
    return found + [ast.unparse(one) for one in keywords if ast.unparse(one.value) != str(SAFE[str(one.arg)])]


@pytest.mark.parametrize("place", PLACES)
def test_no_source_unpickles(place: str) -> None:
    found = {str(file): unsafe(file.read_text()) for file in SOURCES if file.relative_to(TOP).parts[0] == place}
    assert found and not any(found.values()), found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "import torch\ntorch.serialization.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=chosen)",
        "read('x', weights_only=False)",
        "AutoModel.from_pretrained('x', use_safetensors=None)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source: str) -> None:
    assert unsafe(source)


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
