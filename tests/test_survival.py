"""RQ2, feature by feature: in what share of the SAEs it is paired with is a dense feature found again?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from feature_survival.metrics.survival import OTHER_INIT, OTHER_ORDER, SAME_SEEDS, survival_by_feature, survival_column

TAUS = [0.6, 0.7, 0.8]


def matches(*pairs: tuple[str, str, list[float]]) -> pd.DataFrame:
    """One row a feature of each pair: its pairing, the dense SAE, the cosine of every feature."""
    return pd.concat(
        pd.DataFrame(
            {"pairing": pairing, "dense_seed": dense, "feature": range(len(cosines)), "mutual_cosine": cosines}
        )
        for pairing, dense, cosines in pairs
    )


def of(found: pd.DataFrame, pairing: str, tau: float) -> list[float]:
    return found.sort_values(["dense_seed", "feature"])[survival_column(pairing, tau)].tolist()


def test_columns_are_named_after_pairing_and_tau() -> None:
    assert survival_column(SAME_SEEDS, 0.7) == "survival (same init, same order) 0.7"
    found = survival_by_feature(matches((SAME_SEEDS, "a", [0.9]), (OTHER_INIT, "a", [0.9])), TAUS)
    survival = [survival_column(pairing, tau) for pairing in (SAME_SEEDS, OTHER_INIT) for tau in TAUS]
    assert set(found.columns) == {"dense_seed", "feature", *survival}


def test_survival_is_the_share_of_partners_in_which_a_feature_is_found() -> None:
    pairs = [(OTHER_ORDER, "a", cosines) for cosines in ([0.9, 0.65, -1.0], [0.75, 0.9, -1.0], [0.5, 0.85, 0.75])]
    found = survival_by_feature(matches(*pairs), TAUS)
    assert found["feature"].tolist() == [0, 1, 2]
    assert of(found, OTHER_ORDER, 0.6) == pytest.approx([2 / 3, 1, 1 / 3])
    assert of(found, OTHER_ORDER, 0.7) == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert of(found, OTHER_ORDER, 0.8) == pytest.approx([1 / 3, 2 / 3, 0])


def test_a_cosine_of_tau_is_a_survivor() -> None:
    assert of(survival_by_feature(matches((SAME_SEEDS, "a", [0.7, 0.6999])), [0.7]), SAME_SEEDS, 0.7) == [1, 0]


def test_an_sae_without_a_partner_in_a_pairing_has_no_survival_there() -> None:
    found = survival_by_feature(
        matches((SAME_SEEDS, "a", [0.9, 0.1]), (OTHER_INIT, "a", [0.1, 0.9]), (OTHER_INIT, "b", [0.9, 0.9])), [0.7]
    )
    assert len(found) == 4
    assert of(found, SAME_SEEDS, 0.7) == pytest.approx([1, 0, np.nan, np.nan], nan_ok=True)
    assert of(found, OTHER_INIT, 0.7) == [0, 1, 1, 1]


def test_features_of_different_saes_are_kept_apart_whatever_the_order_of_rows() -> None:
    frame = matches((SAME_SEEDS, "b", [0.9, 0.1]), (SAME_SEEDS, "a", [0.1, 0.9]), (SAME_SEEDS, "a", [0.9, 0.9]))
    shuffled = frame.sample(frac=1, random_state=0)
    assert of(survival_by_feature(frame, [0.7]), SAME_SEEDS, 0.7) == [0.5, 1, 1, 0]
    assert of(survival_by_feature(shuffled, [0.7]), SAME_SEEDS, 0.7) == [0.5, 1, 1, 0]
