"""A cell's metrics as read from disk, and what every table needs of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from feature_survival.artifacts import Cell, read_json, read_parquet
from feature_survival.config import Params
from feature_survival.metrics.survival import FEATURE, FIXED, OUTCOMES, PAIRINGS, RANDOM, survival_column
from feature_survival.recipes import METHOD_KEYS
from feature_survival.thresholds import KEPT, MAIN_TAU

Row = dict[str, object]


class Measured(NamedTuple):
    """One cell."""

    params: Params
    cell: Cell
    key: Row  # what leads each of its rows
    numbers: dict[str, Any]  # metrics.json
    dense_numbers: dict[str, Any]  # that of the model's dense cell
    features: pd.DataFrame  # the alive features of the dense SAEs
    matches: pd.DataFrame  # the same features, once for every SAE they are compared with

    @classmethod
    def read(cls, params: Params, cell: Cell) -> Measured:
        """InputError names a missing or broken file."""
        numbers, dense = (read_json(of.metrics / "metrics.json") for of in (cell, cell.dense))
        matches = read_parquet(cell.metrics / "matches.parquet", [*FEATURE, "pairing"])
        survival = [survival_column(pairing, tau) for pairing in set(matches["pairing"]) for tau in params.metrics.taus]
        features = read_parquet(cell.metrics / "features.parquet", [*FEATURE, "alive", "correlation", *survival])
        if cell != cell.dense:  # effects are those in the dense model
            columns = [*FEATURE, *OUTCOMES.values()]
            effects = read_parquet(cell.dense.metrics / "features.parquet", columns)
            features = features.merge(effects[columns], how="left", on=FEATURE)
        alive = features[features["alive"]]
        key: Row = {
            "model": cell.model,
            "condition": cell.condition,
            "series": series_of(params, cell.condition),
            "sparsity": params.recipe(cell.condition).sparsity,
            "achieved_sparsity": numbers["achieved_sparsity"],
        }
        matches = matches.merge(alive[FEATURE], on=FEATURE)
        return cls(params, cell, key, numbers, dense, alive, matches)

    @property
    def is_dense(self) -> bool:
        """Whether this is the model itself."""
        return self.cell == self.cell.dense

    def pairings(self) -> list[str]:
        """The pairings of seeds that the cell's SAEs stand in."""
        found = set(self.matches["pairing"])
        return [pairing for pairing in (*PAIRINGS, RANDOM) if pairing in found]

    def paired(self, *pairings: str) -> pd.DataFrame:
        """The features whose SAEs stand in all of these pairings."""
        return self.features.dropna(subset=[survival_column(pairing, MAIN_TAU) for pairing in pairings])

    def survived(self, pairing: str) -> pd.DataFrame:
        """The features of a pairing, with their survival at the main tau in column `survived`.

        The control without retraining, FIXED, has all features; one "survives" where its activations in the compressed
        model correlate with those in the dense one.
        """
        if pairing == FIXED:
            return self.features.assign(survived=(self.features["correlation"] > KEPT).astype(float))
        features = self.paired(pairing)
        return features.assign(survived=features[survival_column(pairing, MAIN_TAU)])

    def counts(self, pairing: str) -> Row:
        """How much stands behind a row of a pairing."""
        pairs = self.matches.loc[self.matches["pairing"] == pairing, ["dense_seed", "compressed_seed"]]
        return {**count(self.survived(pairing)), "n_pairs": len(pairs.drop_duplicates())}


def count(features: pd.DataFrame) -> Row:
    """How many features of how many dense SAEs."""
    return {"n_features": len(features), "n_saes": features["dense_seed"].nunique()}


def by_sae(features: pd.DataFrame, columns: list[str]) -> Iterator[np.ndarray]:
    """Columns [n, m] of each dense SAE's features, float64."""
    for _, of_sae in features.groupby("dense_seed"):
        yield of_sae[columns].to_numpy(dtype=np.float64)


def series_of(params: Params, name: str) -> str:
    """What a condition shares with others of its kind, whatever the sparsity: the line it is drawn on."""
    recipe = params.recipe(name)
    defaults: dict[str, object] = {"sequential": params.prune.sequential}
    if "group" in METHOD_KEYS[recipe.method]:
        defaults = {"group": params.prune.group, **defaults}
    differing = [f"{key}={found}" for key, default in defaults.items() if (found := getattr(recipe, key)) != default]
    return " ".join([recipe.method, *differing])
