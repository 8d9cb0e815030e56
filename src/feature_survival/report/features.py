"""What the report's feature browser knows of a model: its dense SAE's features, and the text they fire on."""

from __future__ import annotations

from typing import Any

import pandas as pd

from feature_survival.artifacts import Cell, read_json, read_parquet
from feature_survival.config import Params
from feature_survival.metrics.survival import FEATURE, OTHER_INIT, OUTCOMES, SAME_SEEDS, survival_column
from feature_survival.page import visible
from feature_survival.thresholds import MAIN_TAU

OF_DENSE = {
    "rate": "firing_rate",
    "mean": "mean_activation",
    "most": "max_activation",
    "moved": "displacement",
    "effect": next(iter(OUTCOMES.values())),  # rise of cross-entropy where the feature is ablated, nats
}
OF_CONDITION = {
    "same": survival_column(SAME_SEEDS, MAIN_TAU),
    "other": survival_column(OTHER_INIT, MAIN_TAU),
    "correlation": "correlation",
}
DIGITS = 4  # significant, of what is shown


def browser(params: Params, dense: Cell) -> dict[str, Any]:
    """A model's features, as columns and in one order: numbers in the dense model and under each condition of section
    `report`, and contexts. A context is [peak, text, activations in the dense model, then in compressed ones]: those of
    `dense` in every one of them, those of a condition in its own. A text is a number of `texts`, lists of numbers of
    `pieces`; activations are [place, value, place, value, ...], 0 elsewhere.
    """
    seed = params.seeds.compressed[0].name
    cells = {name: Cell(dense.root, dense.model, name) for name in params.report.conditions}
    found = {name: read_parquet(cell.contexts, ["feature", "by", "peak", "tokens", "dense", "compressed"])
             for name, cell in cells.items()}  # fmt: skip
    shown = sorted(set(next(iter(found.values()))["feature"]))
    texts: dict[tuple[str, ...], int] = {}  # most stand more than once
    contexts = _contexts(found, shown, texts)
    pieces = {piece: number for number, piece in enumerate(dict.fromkeys(piece for text in texts for piece in text))}
    return {
        "model": dense.model,
        "seed": seed,
        "tau": MAIN_TAU,
        "site": str(params.model(dense.model).site(params.study.site)),
        "tokens": read_json(dense.metrics / "metrics.json")["tokens"],
        "feature": shown,
        "dense": _columns(dense, OF_DENSE, seed, shown),
        "conditions": {name: _columns(cell, OF_CONDITION, seed, shown) for name, cell in cells.items()},
        "contexts": contexts,
        "texts": [[pieces[piece] for piece in text] for text in texts],
        "pieces": [visible(piece) for piece in pieces],
    }


def _columns(cell: Cell, columns: dict[str, str], seed: str, shown: list[int]) -> dict[str, list[float | None]]:
    """Columns of a cell's features in the order of `shown`; None where there is no value, or no such pairing."""
    table = read_parquet(cell.metrics / "features.parquet", [*FEATURE, "alive"])
    table = table[table["dense_seed"] == seed].set_index("feature").reindex(shown)
    return {key: _short(table[name]) if name in table else [None] * len(shown) for key, name in columns.items()}


def _short(values: Any) -> list[float | None]:
    """Numbers with few digits, whole ones as such; None for NaN."""
    short = [None if pd.isna(value) else float(f"{value:.{DIGITS}g}") for value in values]
    return [int(value) if value is not None and value.is_integer() else value for value in short]


def _sparse(activations: Any) -> list[float | None]:
    """[place, value, ...] of those above 0."""
    places = activations.nonzero()[0]
    return [of for pair in zip(places.tolist(), _short(activations[places]), strict=True) for of in pair]


def _contexts(
    found: dict[str, pd.DataFrame], shown: list[int], texts: dict[tuple[str, ...], int]
) -> list[dict[str, Any]]:
    """The contexts of each feature by where it fires most there; new texts are entered in `texts`."""
    place = {feature: number for number, feature in enumerate(shown)}
    contexts: list[dict[str, Any]] = [{name: [] for name in ("dense", *found)} for _ in shown]
    for number, (name, table) in enumerate(found.items()):
        nth = dict.fromkeys(shown, 0)  # context of the dense model
        for feature, by, peak, tokens, dense, compressed in table[
            ["feature", "by", "peak", "tokens", "dense", "compressed"]
        ].itertuples(index=False, name=None):
            of_feature = contexts[place[feature]]
            if by == "dense" and number:  # the same text, another compressed model
                of_feature["dense"][nth[feature]].append(_sparse(compressed))
                nth[feature] += 1
            else:
                text = texts.setdefault(tuple(tokens), len(texts))
                of_feature["dense" if by == "dense" else name].append([peak, text, _sparse(dense), _sparse(compressed)])
    return contexts
