"""What is published: hashes of every result, and of all it was made of, as dvc.lock names them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from feature_survival.environment import few
from feature_survival.schema import InputError, value_at

RESULTS = ("results/", "paper_figures/")  # which git tracks: all of them must be there


class Entry(NamedTuple):
    """A stage in dvc.lock."""

    deps: dict[str, str]  # path -> hash
    params: dict[str, Any]  # dotted key of params.yaml -> value
    outs: dict[str, str]  # path -> hash


def read_lock(root: Path) -> dict[str, Entry]:
    """Every stage of dvc.lock by its address, `metrics@tiny-dense`; InputError where there is none."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = root / "dvc.lock"
    try:
        stages = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
        return {
            name: Entry(
                {dep["path"]: dep["md5"] for dep in entry.get("deps", ())},
                dict(entry.get("params", {}).get("params.yaml", {})),
                {out["path"]: out["md5"] for out in entry["outs"]},
            )
            for name, entry in stages.items()
        }
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; it names what is published: run from the repository's top") from None
    except (YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        raise InputError(f"{path}: not a dvc.lock; git checkout dvc.lock brings the published one back") from None


def corpus_digest(root: Path) -> str:
    """The hash of the corpus, as data.dvc names it."""
    from ruamel.yaml import YAML

    path = root / "data.dvc"
    if not path.exists():
        raise InputError(f"{path}: no such file; it names the corpus: run from the repository's top")
    return str(YAML(typ="safe").load(path.read_text(encoding="utf-8"))["outs"][0]["md5"])


def digest(path: Path) -> str:
    """A file's or a folder's hash, as DVC has it; empty where there is nothing."""
    from dvc_data.hashfile.hash import file_md5
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    if path.is_file():
        return str(file_md5(str(path)))
    if not path.is_dir():
        return ""
    tree = Tree()
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder) / name
            tree.add(file.relative_to(path).parts, None, HashInfo("md5", file_md5(str(file))))
    tree.digest()
    return str(tree.hash_info.value)


def altered(root: Path, lock: dict[str, Entry], needed: list[str]) -> list[str]:
    """The published outputs here that are not what dvc.lock names; activations, which nobody publishes, left aside.

    needed: outputs without which nothing can be verified; InputError where one is absent.
    """
    absent = [path for path in needed if not (root / path).exists()]
    if absent:
        raise InputError(f"{few(absent)}: not here; dvc pull brings what is published")
    found = []
    for path, value in [out for entry in lock.values() for out in entry.outs.items()]:
        if (path.startswith(RESULTS) or (root / path).exists()) and not path.endswith("/cache"):
            here = digest(root / path)
            if here != value:
                found.append(path if here else f"{path} (absent)")
    return found


def changed_inputs(root: Path, lock: dict[str, Entry], stages: list[str]) -> list[str]:
    """Sources, data and settings that are not those with which the published outputs of stages were made."""
    from ruamel.yaml import YAML

    settings = YAML(typ="safe").load((root / "params.yaml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for stage in stages:
        for path, then in lock[stage].deps.items():
            if path.startswith("artifacts/"):
                continue
            if path not in known:
                known[path] = digest(root / path)
            if known[path] and known[path] != then:
                found.setdefault(f"{path} is another than then", []).append(stage)
        for key, value in lock[stage].params.items():
            now = value_at(settings, key)
            if now != value:
                said = f" is {now}, was {value}" if len(f"{now}{value}") < 80 else " is another than then"
                found.setdefault(f"params.yaml: {key}{said}", []).append(stage)
    return [f"{line} ({few(of)})" for line, of in found.items()]
