"""Computes published results again, in a scratch clone; the checkout stays as it is."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_survival.artifacts import Cell, Place, base_folder, timeline, training_log
from feature_survival.config import Params
from feature_survival.environment import Environment, address, read
from feature_survival.grid.worker import THREADS
from feature_survival.quick import clone, perform
from feature_survival.schema import InputError, unknown
from feature_survival.verify.published import Entry, corpus_digest, digest

if TYPE_CHECKING:
    import pandas as pd

SHIFT = 10  # added to every seed where the spread between seeds is measured


class Chosen(NamedTuple):
    """What is to be computed again; all of it where nothing was named."""

    cells: list[tuple[str, str]]  # (model, condition)
    places: list[tuple[str, str]]  # (model, site)

    @property
    def everything(self) -> bool:
        """Whether nothing was named."""
        return not self.cells and not self.places

    @property
    def models(self) -> list[str]:
        """Whose base is needed."""
        return list(dict.fromkeys(model for model, _ in [*self.cells, *self.places]))


def choose(names: list[str], params: Params) -> Chosen:
    """Cells and places by their names, each word one or more with commas; InputError for an unknown one."""
    cells = {f"{model}-{name}": (model, name) for model in params.study.models for name in params.study.conditions}
    places = {f"{model}-{site}": (model, site) for model in params.variants.models for site in params.variants.sites}
    wanted = list(dict.fromkeys(name for word in names for name in word.split(",") if name))
    for name in wanted:
        if name not in cells and name not in places:
            raise unknown("cell", name, [*cells, *places])
    return Chosen(
        [cells[name] for name in wanted if name in cells], [places[name] for name in wanted if name in places]
    )


def needed(params: Params, chosen: Chosen) -> list[str]:
    """The published outputs without which nothing can be told."""
    root = Path()
    cells = [Cell(root, model, name).metrics for model in params.study.models for name in params.study.conditions]
    places = [Place(root, model, site).metrics for model in params.variants.models for site in params.variants.sites]
    logs = [training_log(root, model) for model in params.study.bases]
    return [str(path) for path in [*(base_folder(root, model) for model in chosen.models), *cells, *places, *logs]]


def commands(chosen: Chosen) -> list[str]:
    """The stages of the chosen cells and places, in order: of a cell also those of its model's dense cell."""
    found = [f"prune {model}" for model in chosen.models]
    cells = [cell for model, condition in chosen.cells for cell in ((model, "dense"), (model, condition))]
    for model, condition in dict.fromkeys(cells):
        found += [f"{stage} {model} {condition}" for stage in ("cache", "sae", "metrics")]
    return found + [f"variants {model} {site}" for model, site in chosen.places]


def prepare(root: Path, scratch: Path, links: list[str]) -> None:
    """A scratch clone in which the published artifacts named stand, as further names of the same files."""
    clone(root, scratch)
    for path in links:
        (scratch / path).parent.mkdir(parents=True, exist_ok=True)
        if (root / path).is_dir():
            shutil.copytree(root / path, scratch / path, copy_function=_link)
        else:
            _link(str(root / path), str(scratch / path))


def _link(source: str, target: str) -> None:
    """Another name of a file, or where that cannot be a copy; stages replace files, and never write into one."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def provide_text(root: Path, scratch: Path) -> None:
    """The corpus, from the checkout or built anew; InputError where it is not the one data.dvc names."""
    if (root / "data").is_dir():
        shutil.copytree(root / "data", scratch / "data", copy_function=_link)
    perform(["feature-survival", "data"], scratch)
    if digest(scratch / "data") != corpus_digest(root):
        raise InputError("data/: not the corpus data.dvc names; other packages or settings? see make data")


def compute(scratch: Path, chosen: Chosen, workers: int | None, published: dict[str, Environment]) -> None:
    """Run the stages of what was chosen one after the other, each with as many threads as its published run had."""
    if chosen.everything:
        perform(["feature-survival", "grid", *(["--workers", str(workers)] if workers else [])], scratch)
        return
    for stage in commands(chosen):
        threads = published.get(address(stage), {}).get("threads") if "OMP_NUM_THREADS" not in os.environ else None
        began = time.monotonic()
        print(f"{address(stage):44}", end="", flush=True)
        perform(
            ["feature-survival", *stage.split()],
            scratch,
            DVC_STAGE=address(stage),
            **(dict.fromkeys(THREADS, threads) if threads else {}),
        )
        print(f"{time.monotonic() - began:7.1f} s", flush=True)


def changed_outputs(scratch: Path, lock: dict[str, Entry]) -> dict[str, list[str]]:
    """Each stage that was run in the scratch clone, if dvc.lock knows it, with outputs that are not as published."""
    computed = ("base", "prune", "cache", "sae", "metrics", "variants")
    names = [name for name in read(timeline(scratch)) if name in lock and name.split("@")[0] in computed]
    return {
        name: [path for path, value in lock[name].outs.items() if digest(scratch / path) != value] for name in names
    }


def shift_seeds(scratch: Path, chosen: Chosen) -> None:
    """Other seeds of the second study's SAEs; where everything is computed again, of all SAEs and of the models."""
    from ruamel.yaml import YAML

    path, yaml = scratch / "params.yaml", YAML()
    content: Any = yaml.load(path)
    of_first = [("seeds", "dense"), ("seeds", "compressed")] if chosen.everything else []
    for section, key in [*of_first, ("variants", "seeds")]:
        content[section][key] = [[seed + SHIFT for seed in pair] for pair in content[section][key]]
    for model in content["study"]["bases"] if chosen.everything else []:
        if training := content["models"][model]["weights"].get("training"):
            training["seed"] += SHIFT
    yaml.dump(content, path)


def unshift(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its seeds named as if they had not been shifted."""
    columns: dict[str, Any] = {name: table[name] - SHIFT for name in ("init_seed", "data_seed") if name in table}
    if "seed" in table:
        columns["seed"] = table["seed"].str.replace(r"\d+", lambda seed: str(int(seed[0]) - SHIFT), regex=True)
    return table.assign(**columns)
