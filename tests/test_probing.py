"""Attributes of tokens, linear probes, k-sparse probing: against hand-made cases and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from feature_survival.metrics import probes
from feature_survival.metrics.attributes import (
    CAPITALISED,
    FIRST_LETTER,
    LEADING_SPACE,
    NONE,
    NUMERIC,
    binary_tasks,
    most_frequent,
    restricted,
    token_attributes,
)
from feature_survival.metrics.probes import f1_score, fit_probe
from feature_survival.metrics.probing import mean_difference, measure_probing, rank_latents

EXPECTED = {  # text: first letter, leading space, capitalised, numeric
    None: (NONE, NONE, NONE, NONE),
    " the": (19, 1, 0, 0),
    "The": (19, 0, 1, 0),
    " A": (0, 1, 1, 0),
    "z": (25, 0, 0, 0),
    "ab1": (0, 0, 0, 0),
    "12": (NONE, 0, NONE, 1),
    " 7": (NONE, 1, NONE, 1),
    "1a": (NONE, 0, NONE, 0),
    " ": (NONE, 1, NONE, 0),
    "  a": (NONE, 1, NONE, 0),  # only one space is set aside
    "": (NONE, 0, NONE, 0),
    "\n": (NONE, 0, NONE, 0),
    ".": (NONE, 0, NONE, 0),
    "\ufffd": (NONE, 0, NONE, 0),
    "É": (NONE, 0, 1, 0),
    "\u212a": (NONE, 0, 1, 0),  # the Kelvin sign, whose lower case is k
}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("text", EXPECTED)
def test_attributes_are_those_of_the_text(text: str | None) -> None:
    labels = token_attributes([text])
    assert list(labels) == [FIRST_LETTER, LEADING_SPACE, CAPITALISED, NUMERIC]
    assert all(label.dtype == torch.long and label.shape == (1,) for label in labels.values())
    assert tuple(label.item() for label in labels.values()) == EXPECTED[text]


@given(text=st.text("aZé1. \n", max_size=4).filter(lambda text: not text.startswith(" ")))
def test_a_space_before_a_token_changes_nothing_but_leading_space(text: str) -> None:
    plain, spaced = (token_attributes([each]) for each in (text, " " + text))
    assert (plain.pop(LEADING_SPACE).item(), spaced.pop(LEADING_SPACE).item()) == (0, 1)
    assert plain == spaced


def test_labels_are_counted_restricted_and_split_into_binary_tasks() -> None:
    first = torch.tensor([5, 2, NONE, 5, 2, 9, 7, 7, 5])
    assert most_frequent(first, 2).tolist() == [2, 5]  # 2 ties with 7 and is lower
    assert most_frequent(first, 9).tolist() == [2, 5, 7, 9]
    assert most_frequent(torch.tensor([NONE]), 3).tolist() == []
    assert restricted(first, torch.tensor([2, 5])).tolist() == [1, 0, NONE, 1, 0, NONE, NONE, NONE, 1]
    tasks = binary_tasks({FIRST_LETTER: first, NUMERIC: torch.ones(9)}, torch.tensor([2, 5]))
    assert list(tasks) == [NUMERIC, "first letter c", "first letter f"]
    assert tasks["first letter c"].tolist() == [0, 1, NONE, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_two_classes_are_the_logistic_regression_of_statsmodels_at_half_the_strength(l2: float) -> None:
    x = drawn(0, 400, 3) * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 50.0, 1.0])
    y = (x[:, 0] + 0.1 * (x[:, 1] - 50) + drawn(1, 400) > 0.3).long()
    probe = fit_probe(x, y, 2, l2)
    standardised = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    model = sm.GLM(y.numpy(), sm.add_constant(standardised), family=sm.families.Binomial())
    # statsmodels maximises log-likelihood / n - alpha ||w||^2 / 2
    reference = model.fit_regularized(alpha=np.array([0, *[l2 / 2] * 3]), L1_wt=0.0, cnvrg_tol=1e-12, maxiter=2000)
    logits = probe.logits(x)
    expected = sm.add_constant(standardised) @ reference.params
    np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).numpy(), expected, atol=2e-3)
    torch.testing.assert_close(probe.weight[0], -probe.weight[1])


def test_many_classes_are_the_multinomial_regression_of_statsmodels() -> None:
    x, noise = drawn(2, 600, 2), drawn(3, 600, 3)
    y = (torch.stack([x[:, 0], x[:, 1], -x.sum(1)], dim=1) + noise).argmax(1)
    probe = fit_probe(x, y, 3, l2=0.0)
    reference = sm.MNLogit(y.numpy(), sm.add_constant(x.numpy())).fit(disp=False)
    expected = reference.predict(sm.add_constant(x.numpy()))
    np.testing.assert_allclose(probe.logits(x).softmax(-1).numpy(), expected, atol=2e-3)
    assert torch.equal(probe.predict(x), torch.from_numpy(expected.argmax(1)))


def test_balanced_is_the_rarer_class_repeated_until_both_are_even() -> None:
    x, y = drawn(4, 90, 2), (torch.arange(90) < 30).long()
    weighted = fit_probe(x, y, 2, l2=0.0, balanced=True)
    repeated = fit_probe(torch.cat([x, x[:30]]), torch.cat([y, y[:30]]), 2, l2=0.0)
    torch.testing.assert_close(weighted.logits(x), repeated.logits(x), atol=1e-3, rtol=0)
    assert (fit_probe(x, y, 2, l2=0.0).logits(x) - weighted.logits(x)).abs().max() > 0.1


@pytest.mark.parametrize("balanced", [False, True])
def test_few_inputs_and_many_are_fitted_to_the_same_probe(balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = drawn(6, 500, 5).relu()
    y = (x[:, 0] + drawn(7, 500) > 0.8).long()
    by_newton = fit_probe(x, y, 2, 2e-3, balanced)
    monkeypatch.setattr(probes, "FEW", 0)
    by_gradients = fit_probe(x, y, 2, 2e-3, balanced)
    torch.testing.assert_close(by_newton.logits(x), by_gradients.logits(x), atol=1e-3, rtol=0)
    assert not torch.equal(by_newton.weight, by_gradients.weight)


def test_separable_classes_without_a_penalty_end_in_finite_weights() -> None:
    y = (torch.arange(60) < 20).long()
    probe = fit_probe(drawn(8, 60, 2) + 20 * y[:, None], y, 2, l2=0.0)
    assert torch.isfinite(probe.weight).all()
    assert torch.equal(probe.predict(drawn(8, 60, 2) + 20 * y[:, None]), y)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100), seed=st.integers(0, 99))
def test_a_probe_sees_no_scale_and_no_shift_of_its_inputs(scale: float, shift: float, seed: int) -> None:
    x, y = drawn(seed, 60, 3), torch.arange(60) % 3
    x[:, 0] += y
    before, after = fit_probe(x, y, 3, 0.01), fit_probe(scale * x + shift, y, 3, 0.01)
    torch.testing.assert_close(after.logits(scale * x + shift), before.logits(x), atol=2e-3, rtol=0)


def test_a_constant_input_and_a_class_without_tokens_do_no_harm() -> None:
    x, y = drawn(5, 50, 2), (torch.arange(50) % 2) * 2
    x[:, 1] = 0.1
    x[:, 0] += y
    probe = fit_probe(x, y, 3, 0.01, balanced=True)
    assert torch.isfinite(probe.weight).all() and torch.isfinite(probe.bias).all()
    assert probe.weight[:, 1].abs().max() < 1e-9
    assert not (probe.predict(x) == 1).any()


def test_f1_is_of_the_positives() -> None:
    true = torch.tensor([1, 1, 1, 0, 0]).bool()
    assert f1_score(torch.tensor([1, 1, 0, 1, 0]).bool(), true) == pytest.approx(2 / 3)
    assert f1_score(true & False, true & False) == 0


def world(seed: int, rows: int = 400) -> tuple[Tensor, dict[str, Tensor]]:
    """Codes of 10 latents and two tasks: latent 3 is the first, latents 5 and 7 together are the second."""
    generator = torch.Generator().manual_seed(seed)
    one, five, seven = (torch.randint(0, 2, (rows,), generator=generator) for _ in range(3))
    codes = 0.1 * torch.rand(rows, 10, generator=generator)
    codes[:, 3] += one
    codes[:, 5] += five
    codes[:, 7] += 0.8 * seven * (1 - five)
    other = (five + seven > 0).long()
    one[::7] = NONE
    return codes, {"one": one, "other": other}


def test_latents_that_are_the_attributes_are_found_and_tell_them() -> None:
    (codes_fit, fit), (codes_test, test) = world(0), world(1)
    found = measure_probing(codes_fit, codes_test, fit, test, ks=(1, 2))
    assert found.by_task["one"] == {1: 1.0, 2: 1.0}
    assert found.by_task["other"][2] == 1.0
    assert 0.7 < found.by_task["other"][1] < 0.95  # a third of the positives is latent 7's
    assert found.accuracy[1] == pytest.approx((1 + found.by_task["other"][1]) / 2)


def test_latents_that_know_nothing_are_at_chance() -> None:
    (_, fit), (_, test) = world(0, 2000), world(1, 2000)
    found = measure_probing(drawn(2, 2000, 10).relu(), drawn(3, 2000, 10).relu(), fit, test, ks=(1, 5))
    assert all(abs(accuracy - 0.5) < 0.06 for accuracy in found.accuracy.values())


def test_a_rare_class_is_balanced_and_too_rare_a_one_left_out() -> None:
    labels = (torch.arange(1000) < 30).long()
    blind = torch.zeros(1000, 3)
    found = measure_probing(blind, blind, {"rare": labels}, {"rare": labels}, ks=(1,))
    assert found.accuracy == {1: 0.5}
    few = (torch.arange(1000) < 19).long()
    found = measure_probing(blind, blind, {"rare": labels}, {"rare": few}, ks=(1,))
    assert np.isnan(found.accuracy[1]) and not found.by_task


def test_probing_twice_gives_the_same_numbers() -> None:
    (codes_fit, fit), (codes_test, test) = world(0), world(1)
    assert measure_probing(codes_fit, codes_test, fit, test, (1,)) == measure_probing(
        codes_fit, codes_test, fit, test, (1,)
    )


def test_mean_difference_and_ranking_on_planted_latents() -> None:
    codes, tasks = world(0)
    one = tasks["one"]
    rows = [(one == label).nonzero()[:, 0] for label in (1, 0)]
    expected = codes[rows[0]].mean(0) - codes[rows[1]].mean(0)
    torch.testing.assert_close(mean_difference(codes, *rows), expected)
    torch.testing.assert_close(mean_difference(codes, one == 1, one == 0), expected)
    has = one != NONE
    assert rank_latents(codes[has], one[has], 1).tolist() == [3]
    assert set(rank_latents(codes, tasks["other"], 2).tolist()) == {5, 7}
    letters = torch.arange(400) % 4 + 1  # classes need not start at 0
    assert set(rank_latents(torch.eye(6)[letters], letters, 4).tolist()) == {1, 2, 3, 4}
