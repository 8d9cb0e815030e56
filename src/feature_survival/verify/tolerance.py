"""How far a number may drift: measured, as how far other seeds move it.

The spread of a metric is the root mean square by which its numbers differ between two runs whose seeds differ; a number
may drift by a few times that (FACTORS). Where the base model is the published one, byte for byte, the seeds are those
of the SAEs. Where it was trained again and came out as another one (another processor sums floats in another order, and
training makes another model of that), they are the model's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from feature_survival.artifacts import atomic_file, read_csv
from feature_survival.verify.compare import MIXED, MODELS, SAME, SEEDS

# Of SAEs, three standard deviations. Of models there are few, and the numbers of one hang together: 10 is the 99.8%
# quantile of Student's t with 3 degrees of freedom.
FACTORS = {SAME: 0.0, SEEDS: 3.0, MODELS: 10.0}
ROUNDING = 1e-4  # of a number: what has no spread, as the losses of one model, still depends on the order of sums
OWN = 2.0  # a question that moves this many times as far as all of its metric has a spread of its own
# A metric has rare numbers far out, as a KL divergence where an SAE hardly works, or a p-value: one in twenty of its
# numbers may lie beyond the tolerance, none beyond FAR times that.
RARE, FAR = 0.05, 5.0
COLUMNS = ["between", "table", "column", "question", "spread", "numbers"]


def spread_file(root: Path) -> Path:
    """Where the measured spread stands."""
    return root / "results" / "spread.csv"


def read_spread(root: Path) -> pd.DataFrame:
    """The measured spread; InputError where there is none."""
    return read_csv(spread_file(root), COLUMNS)


def measure(aligned: pd.DataFrame, between: str) -> pd.DataFrame:
    """The spread of every column of every table between SEEDS, or MODELS, by COLUMNS.

    question: empty for all rows together; further ones for questions that move OWN times as far. numbers: how many
    differences stand behind it.
    """
    rows = aligned[(aligned["by"] == between) & aligned["present"]]
    with np.errstate(invalid="ignore"):
        square = ((rows["published"] - rows["recomputed"]) ** 2).replace(np.inf, np.nan)
    rows = rows.assign(square=square).dropna(subset="square")
    metric = ["table", "column"]
    together = rows.groupby(metric, as_index=False)["square"].agg(["mean", "size"]).assign(question="")
    single = rows.groupby([*metric, "question"], as_index=False)["square"].agg(["mean", "size"])
    of_metric = single.merge(together, on=metric, suffixes=("", " of all"))["mean of all"]
    single = single[(single["mean"] > OWN**2 * of_metric) & (single["question"] != "")]
    found = pd.concat([together, single]).rename(columns={"size": "numbers"})
    return found.assign(between=between, spread=np.sqrt(found["mean"]))[COLUMNS]


def write_spread(root: Path, measured: pd.DataFrame) -> Path:
    """Put a measured spread in the place of the earlier one of its kind, table by table. Returns the file."""
    path = spread_file(root)
    tables = [measured]
    if path.exists():
        old = read_spread(root).fillna({"question": ""})
        kind = ["between", "table"]
        anew = pd.MultiIndex.from_frame(old[kind]).isin(pd.MultiIndex.from_frame(measured[kind]))
        tables.append(old[~anew])
    with atomic_file(path) as file:
        pd.concat(tables).sort_values(COLUMNS[:4]).to_csv(file, index=False, float_format="%.3g", lineterminator="\n")
    return path


def judge(aligned: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """Aligned numbers with spread, tolerance, drift and real; rows that mix recomputed cells with published left out.

    drift: in units of the tolerance, infinite where one side alone has a number. real: whether it is a difference that
    seeds do not explain.
    """
    rows = aligned[aligned["by"] != MIXED]
    known = spread.fillna({"question": ""}).set_index(COLUMNS[:4])["spread"]
    metric = [rows["by"], rows["table"], rows["column"]]
    of_all, own = (
        known.reindex(pd.MultiIndex.from_arrays([*metric, question])).to_numpy()
        for question in (np.full(len(rows), ""), rows["question"])
    )
    spreads = np.nan_to_num(np.fmax(of_all, own))
    published, recomputed = rows["published"].astype(float), rows["recomputed"].astype(float)
    tolerance = np.fmax(
        rows["by"].map(FACTORS) * spreads, ROUNDING * published.abs().where(np.isfinite(published), 0.0)
    )
    # What one model can tell (absorption, where enough letters can be told apart) another may not.
    untold = (published.isna() & recomputed.isna()) | ((published.isna() | recomputed.isna()) & (rows["by"] == MODELS))
    equal = ((published == recomputed) | untold) & rows["present"]
    with np.errstate(divide="ignore", invalid="ignore"):
        drift = ((published - recomputed).abs() / tolerance).fillna(np.inf).mask(equal, 0.0)
    rows = rows.assign(spread=spreads, tolerance=tolerance, drift=drift)
    beyond = (rows["drift"] > 1).groupby([rows["table"], rows["column"], rows["by"]])
    rare = beyond.transform("sum") <= RARE * beyond.transform("size")
    forgiven = (rows["by"] != SAME) & rare & (rows["drift"] <= FAR)
    return rows.assign(real=(rows["drift"] > 1) & ~forgiven)
