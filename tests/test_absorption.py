"""First-letter absorption: planted dictionaries with fractions worked out by hand, a slow oracle token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from feature_survival.metrics.absorption import Absorption, measure_absorption
from feature_survival.metrics.probes import FEWEST, Probe, fit_probe

LETTERS, WIDTH, EACH = 3, 6, 40  # letter l has direction l; direction 3 + l belongs to its word
HALVES = torch.arange(LETTERS).repeat_interleave(EACH)
PROBE = Probe(torch.eye(LETTERS, WIDTH, dtype=torch.float64), torch.zeros(LETTERS, dtype=torch.float64))


def clean() -> Tensor:
    """Codes of a dictionary with a latent a letter, one latent of each letter's first word, and one of noise."""
    codes = torch.zeros(len(HALVES), 2 * LETTERS + 1)
    codes[torch.arange(len(HALVES)), HALVES] = 1
    return codes


def measure(dec: Tensor, codes: Tensor, x: Tensor | None = None, letters: Tensor = HALVES) -> Absorption:
    return measure_absorption(dec, codes, codes, codes @ dec if x is None else x, HALVES, letters, PROBE)


def decoder(along_letter: float) -> Tensor:
    """A latent a letter; word latents with that cosine to their letter's direction; a latent of nothing."""
    dec = torch.zeros(2 * LETTERS + 1, WIDTH)
    dec[:LETTERS, :LETTERS] = torch.eye(LETTERS)
    dec[LETTERS:-1, :LETTERS] = along_letter * torch.eye(LETTERS)
    dec[LETTERS:-1, LETTERS:] = math.sqrt(1 - along_letter**2) * torch.eye(LETTERS)
    dec[-1, -1] = 1
    return dec


WORD = torch.arange(8)  # the first letter's tokens 0 to 7 are one word


def test_a_latent_a_letter_absorbs_nothing() -> None:
    found = measure(decoder(0.8), clean())
    assert (found.mean_fraction, found.mean_full_rate) == (0, 0)
    assert found.letters.tolist() == [0, 1, 2] and found.tokens.tolist() == [EACH] * 3
    assert found.main_latents == ((0,), (1,), (2,))


def test_a_words_own_latent_that_helps_to_tell_the_letter_is_a_main_latent_and_absorbs_nothing() -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0, 2
    found = measure(decoder(0.8), codes)  # F1 is 0.89 with the letter's latent alone, 1 with the word's
    assert found.main_latents[0] == (0, LETTERS)
    assert (found.mean_fraction, found.mean_full_rate) == (0, 0)


def absorbed(codes: Tensor, dec: Tensor, x: Tensor | None = None) -> Absorption:
    """Main latents come from a clean fitting half, in which the word does not occur."""
    return measure_absorption(dec, clean(), codes, codes @ dec if x is None else x, HALVES, HALVES, PROBE)


def test_absorption_of_a_word_silent_in_one_letter_by_hand() -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0, 2
    found = absorbed(codes, decoder(0.8))
    assert found.main_latents[0] == (0,)
    assert found.fraction.tolist() == pytest.approx([8 / 40, 0, 0])  # 1 on each of the word's tokens
    assert found.full_rate.tolist() == pytest.approx([8 / 40, 0, 0])
    assert found.mean_fraction == pytest.approx(8 / 40 / 3) == found.mean_full_rate


def test_a_weakened_letter_latent_is_absorbed_in_part() -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0.4, 1
    found = absorbed(codes, decoder(0.8))  # p = 0.4 + 0.8, p_main = 0.4, p_other = 0.8 of which 0.8 is unaccounted for
    assert found.fraction[0].item() == pytest.approx(8 / 40 * 0.8 / 1.2)
    assert found.mean_full_rate == 0  # the main latent fires


def test_no_more_is_absorbed_than_the_main_latents_leave() -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0.4, 1
    x = codes @ decoder(0.8)
    x[WORD, 0] = 1.0  # of p = 1, 0.6 is unaccounted for
    assert absorbed(codes, decoder(0.8), x).fraction[0].item() == pytest.approx(8 / 40 * 0.6)
    x[WORD, 0] = 0.3  # the main latents account for all
    assert absorbed(codes, decoder(0.8), x).mean_fraction == 0


@pytest.mark.parametrize(("cosine", "fraction", "full"), [(0.12, 1, 1), (0.05, 0, 1), (0.02, 0, 0)])
def test_an_absorbing_latent_must_point_along_the_probe(cosine: float, fraction: float, full: float) -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0, 1
    found = absorbed(codes, decoder(cosine))
    assert found.fraction[0].item() == pytest.approx(fraction * 8 / 40)
    assert found.full_rate[0].item() == pytest.approx(full * 8 / 40)


@pytest.mark.parametrize(("projection", "absorbs"), [(1.99, 1), (2.01, 0)])
def test_absorbing_latents_must_carry_their_share(projection: float, absorbs: float) -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0, 1
    x = codes @ decoder(0.8)
    x[WORD, 0] = projection  # 0.8 of it is carried; the least is 0.4
    found = absorbed(codes, decoder(0.8), x)
    assert found.fraction[0].item() == found.full_rate[0].item() == pytest.approx(absorbs * 8 / 40)


def test_at_most_three_latents_absorb() -> None:
    dec = torch.cat([decoder(0.8)[:LETTERS], torch.eye(1, WIDTH).repeat(5, 1)])
    codes = torch.cat([clean()[:, :LETTERS], torch.zeros(len(HALVES), 5)], dim=1)
    fit = codes.clone()
    codes[WORD, 0], codes[WORD, LETTERS:] = 0.2, 0.2
    x = codes @ dec
    found = measure_absorption(dec, fit, codes, x, HALVES, HALVES, PROBE)  # p = 1.2, p_other = 0.6 of 1.0
    assert found.fraction[0].item() == pytest.approx(8 / 40 * 0.6 / 0.8)


def test_what_counts_is_what_a_latent_writes_not_its_cosine_alone() -> None:
    codes = clean()
    codes[WORD, 0], codes[WORD, LETTERS] = 0.4, 2
    halved = decoder(0.8)
    halved[LETTERS:-1] /= 2  # as a pruned decoder's rows: shorter; the code twice as large writes the same
    assert absorbed(codes, halved).fraction[0].item() == pytest.approx(8 / 40 * 0.8 / 1.2)


def test_scale_of_the_activations_changes_nothing() -> None:
    codes, dec = clean(), decoder(0.8)
    codes[WORD, 0], codes[WORD, LETTERS] = 0.4, 1
    one, ten = (
        measure_absorption(dec, scale * clean(), scale * codes, scale * codes @ dec, HALVES, HALVES, PROBE)
        for scale in (1, 10)
    )
    assert one.mean_fraction == pytest.approx(ten.mean_fraction)
    assert one.main_latents == ten.main_latents


def test_a_split_letter_has_two_main_latents() -> None:
    codes = clean()
    second = torch.arange(0, EACH, 3)
    codes[second, 0], codes[second, 2 * LETTERS] = 0, 1  # a third of the letter has a latent of its own
    found = measure(decoder(0.8), codes, clean() @ decoder(0.8))
    assert found.main_latents[0] == (0, 2 * LETTERS)


def test_letters_with_few_tokens_or_a_poor_probe_are_left_out() -> None:
    x = clean() @ decoder(0.8)
    x[: EACH - FEWEST + 1] = torch.tensor([0.0, 1, 0, 0, 0, 0])  # the probe gets 19 of letter 0 right
    found = measure(decoder(0.8), clean(), x)
    assert found.letters.tolist() == [1, 2] and found.tokens.tolist() == [EACH, EACH]
    x[EACH:] = torch.tensor([1.0, 0, 0, 0, 0, 0])
    found = measure(decoder(0.8), clean(), x)
    assert found.letters.tolist() == [] and math.isnan(found.mean_fraction) and math.isnan(found.mean_full_rate)


def slow(dec: Tensor, code: Tensor, x: Tensor, direction: Tensor, main: tuple[int, ...]) -> tuple[float, bool]:
    """SAEBench's definition for one token, in plain Python."""
    cosine = [float(row @ direction / row.norm()) for row in dec]
    part = [float(a * (row @ direction)) for a, row in zip(code, dec, strict=True)]
    p, p_main = float(x @ direction), sum(part[i] for i in main)
    others = [part[i] for i in range(len(dec)) if i not in main and cosine[i] >= 0.1 and part[i] > 0]
    p_other = sum(sorted(others)[-3:])
    top = max(range(len(dec)), key=part.__getitem__)
    full = all(code[i] < 1e-8 for i in main) and p > 0 and cosine[top] >= 0.025 and part[top] / p >= 0.4
    if p_main >= p or p_other / p < 0.4:
        return 0.0, full
    if p_main <= 0:
        return 1.0, full
    absorbed = min(p_other, p - p_main)
    return min(max(absorbed / (absorbed + p_main), 0), 1), full


def test_random_dictionaries_agree_with_the_definition_token_by_token() -> None:
    generator = torch.Generator().manual_seed(0)
    width, latents, rows = 8, 40, 600
    dec = torch.nn.functional.normalize(torch.randn(latents, width, generator=generator), dim=1)
    letters = torch.randint(0, 4, (rows,), generator=generator)
    codes = torch.rand(rows, latents, generator=generator) * (torch.rand(rows, latents, generator=generator) < 0.15)
    home = torch.randn(4, width, generator=generator)
    x = codes @ dec + home[letters]
    probe = fit_probe(x[:300], letters[:300], 4, 1e-3)
    found = measure_absorption(dec, codes[:300], codes[300:], x[300:], letters[:300], letters[300:], probe)
    assert len(found.letters) >= 2
    right = probe.predict(x[300:]) == letters[300:]
    for i, letter in enumerate(found.letters.tolist()):
        direction = probe.weight[letter] / probe.weight[letter].norm()
        chosen = (right & (letters[300:] == letter)).nonzero()[:, 0] + 300
        tokens = [
            slow(dec.double(), codes[j].double(), x[j].double(), direction, found.main_latents[i]) for j in chosen
        ]
        assert found.tokens[i] == len(tokens)
        assert found.fraction[i].item() == pytest.approx(sum(token[0] for token in tokens) / len(tokens))
        assert found.full_rate[i].item() == pytest.approx(sum(token[1] for token in tokens) / len(tokens))
    assert found.fraction.max() > 0 and found.full_rate.max() > 0
