"""What a stage reads must be when it ends what it was when it began.

DVC notes in dvc.lock what it finds once a stage has ended: parameters or sources that somebody edited meanwhile would
stand there beside results of the old ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_survival.schema import InputError, value_at


@contextmanager
def unchanged(root: Path, stage: str, items: Mapping[str, object]) -> Iterator[None]:
    """InputError at the end of the block where one of the inputs that dvc.yaml gives a stage is another by then.

    items: what `${item....}` stands for in the stage's keys and paths, e.g. model and condition.
    """
    before = dict(_inputs(root, stage, items))
    yield
    for name, value in _inputs(root, stage, items):
        if before.get(name) != value:
            name = ".".join([name, *_first_difference(before.get(name), value)])
            raise InputError(f"{name} was changed while stage {stage} ran; its result is not recorded, run it again")


def _first_difference(one: Any, other: Any) -> list[str]:
    """The keys that lead to it, where both are sections."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return []
    key = next(key for key in [*one, *other] if one.get(key) != other.get(key))
    return [str(key), *_first_difference(one.get(key), other.get(key))]


def _inputs(root: Path, stage: str, items: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Each parameter with its value, each file or folder with what tells it from another."""
    graph = root / "dvc.yaml"
    declared = _read(graph)["stages"].get(stage, {}) if graph.exists() else {}
    params = _read(root / "params.yaml") if "params" in declared else {}

    def filled(text: str) -> str:
        """With the values in place of `${...}`."""
        known = {"item": items, **params}
        return re.sub(r"\$\{(.+?)\}", lambda found: str(value_at(known, found.group(1))), text)

    for key in map(filled, declared.get("params", ())):
        yield f"params.yaml: {key}", value_at(params, key)
    for path in map(filled, declared.get("deps", ())):
        yield path, _content(root / path) if path.startswith("src/") else _identity(root / path)


def _read(path: Path) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def _content(path: Path) -> object:
    """Of a source or a folder of them: editors and git rewrite them in place, often as they were."""
    files = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    return [hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file() and file.suffix != ".pyc"]


def _identity(path: Path) -> object:
    """What tells a data file or an artifact from the one that replaces it; they are only ever replaced whole."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
