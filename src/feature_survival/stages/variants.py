"""Stage `variants`: the second study at one site of a model.

`variants.parquet`: one row an SAE and a model it is measured on. `compressors.parquet`: one row a compressed model.
`latents.parquet`: one row a latent of the dense model's SAE and a way to prune it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from feature_survival.activations import Normalization, Shards, measure_normalization, write_shards
from feature_survival.artifacts import Place, atomic_directory, read_json, released_sae, text_folder
from feature_survival.catalogue import Site
from feature_survival.compression.condition import load_compressed
from feature_survival.config import Params, Sae, Seed
from feature_survival.matching import mutual_cosine
from feature_survival.metrics import (
    BOTH,
    DECODER,
    ENCODER,
    PRETRAINED,
    PRUNED,
    RELEASED,
    RETRAINED,
    SAE_SCORES,
    STANDARD,
)
from feature_survival.metrics.attributes import token_attributes
from feature_survival.metrics.language import window_cross_entropy
from feature_survival.metrics.meaning import measure_meaning, prepare
from feature_survival.metrics.quality import measure_quality
from feature_survival.metrics.reconstruction import Reconstruction, alive, measure_reconstruction
from feature_survival.metrics.survival import FIXED, pairs
from feature_survival.metrics.transfer import Transfer, measure_transfer
from feature_survival.metrics.variants import Variant, latents_left, measure_norms, prune_sae
from feature_survival.progress import progress
from feature_survival.sae import ROWS, Dictionary
from feature_survival.schema import InputError
from feature_survival.text import read_vocabulary, token_texts, windows
from feature_survival.thresholds import KEPT, MAIN_TAU
from feature_survival.trainers import Job, train_saes
from feature_survival.trainers.files import origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Row = dict[str, object]


class Bench(NamedTuple):
    """What all measurements at a site share."""

    params: Params
    place: Place
    site: Site
    tokens: dict[str, Tensor]  # int64 [windows, position] by split
    attributes: dict[str, Tensor]  # int64 labels [vocabulary] by name
    settings: dict[str, Sae]  # by name: the standard SAE, and those of `redundancy`
    folder: Path  # of the SAEs

    @property
    def scratch(self) -> Path:
        """Activations, gone when the stage ends."""
        return self.folder / "scratch"


class Observed(NamedTuple):
    """A compressed model, and its activations at the site."""

    condition: str
    model: PreTrainedModel
    train: Shards
    evaluation: Shards
    entropy: Tensor  # float64 [windows]: the evaluation windows' mean next-token cross-entropy in nats

    def fitted(self, rows: int) -> Iterator[Tensor]:
        """The first rows of those that SAEs are trained on, as batches."""
        for batch in self.train.batches(ROWS):
            if rows <= 0:
                return
            yield batch[:rows]
            rows -= len(batch)


class Dense(NamedTuple):
    """What is kept of the dense model: its SAEs and activations."""

    evaluation: Shards
    normalization: Normalization  # of all activations at the site, whatever model they are of
    saes: dict[tuple[str, Seed], Dictionary]  # by the name of their settings and seed
    lives: dict[Seed, Tensor]  # bool [d_sae]: latents of the standard ones that fire often enough to be counted


class Measured(NamedTuple):
    """SAEs on one model: what they leave of its activations, and their rows of `variants.parquet`."""

    evaluation: dict[Variant, Reconstruction]
    fitted: dict[Variant, Reconstruction]  # on as many of the tokens that SAEs are trained on
    transfer: Transfer  # of the dense model's standard SAE, from the dense model to this one
    rows: dict[Variant, Row]


class Found(NamedTuple):
    """Rows of the three tables, of one model."""

    variants: list[Row]
    compressor: Row
    latents: pd.DataFrame


def run(params: Params, place: Place) -> None:
    """Train, prune and measure; writes the SAEs and the three tables."""
    study = params.variants
    standard = params.sae
    redundancy = study.redundancy if place.site == study.sites[0] else {}
    settings = {name: standard.model_copy(update=of.model_dump(exclude_none=True)) for name, of in redundancy.items()}
    vocabulary, text = read_vocabulary(place.cell("dense").base), text_folder(place.root, place.model)
    counts = {"sae": study.sae_windows, "evaluation": study.evaluation_windows}
    tokens = {split: windows(text, split, vocabulary, params.window, n) for split, n in counts.items()}
    attributes = token_attributes(token_texts(vocabulary))
    site = params.model(place.model).site(place.site)
    with atomic_directory(place.saes) as folder, atomic_directory(place.metrics) as out:
        bench = Bench(params, place, site, tokens, attributes, {STANDARD: standard, **settings}, folder)
        dense, found_on_dense = _dense(bench)
        found = [found_on_dense]
        conditions = study.conditions(place.site)
        for condition in progress(conditions, f"variants {place}", len(conditions), "condition"):
            found.append(_found_on(bench, dense, condition))
        shutil.rmtree(bench.scratch)
        pd.DataFrame([row for of in found for row in of.variants]).to_parquet(out / "variants.parquet", index=False)
        pd.DataFrame([of.compressor for of in found]).to_parquet(out / "compressors.parquet", index=False)
        pd.concat([of.latents for of in found]).to_parquet(out / "latents.parquet", index=False)


def _dense(bench: Bench) -> tuple[Dense, Found]:
    """Train and measure the SAEs of the dense model: the standard one with every seed, the others with the first.
    Where others have published one of this site, it stands beside them."""
    seeds, on = bench.params.variants.seeds, _observe(bench, "dense")
    normalization = measure_normalization(on.train)
    asked = [(name, seed) for name in bench.settings for seed in (seeds if name == STANDARD else seeds[:1])]
    saes = _train(bench, on, normalization, asked)
    published = released_sae(bench.place)
    if published.exists():
        saes[RELEASED, seeds[0]] = Dictionary.read(published, on.train.width)
    asked_of = {Variant(name, PRETRAINED, seed.name): sae for (name, seed), sae in saes.items()}
    measured = _measure(bench, on, asked_of, on.evaluation)
    standard = {seed: measured.evaluation[Variant(STANDARD, PRETRAINED, seed.name)] for seed in seeds}
    lives = {seed: alive(found.firing_rate, len(on.evaluation)) for seed, found in standard.items()}
    dense = Dense(on.evaluation, normalization, saes, lives)
    compressor = _compressor(bench, dense, on, None, measured)
    return dense, Found(list(measured.rows.values()), compressor, pd.DataFrame())


def _found_on(bench: Bench, dense: Dense, condition: str) -> Found:
    """Every variant on one compressed model."""
    study, on = bench.params.variants, _observe(bench, condition)
    first, main = study.seeds[0], condition == study.condition
    known = list(dict.fromkeys(name for name, _ in dense.saes))
    names = known if main else [STANDARD, *({RELEASED} & set(known))]
    retrained = _train(bench, on, dense.normalization, [(name, first) for name in names if name != RELEASED])
    saes: dict[Variant, Dictionary] = {}
    for name in names:
        saes[Variant(name, PRETRAINED, first.name)] = dense.saes[name, first]
        if name != RELEASED:
            saes[Variant(name, RETRAINED, first.name)] = retrained[name, first]
        saes |= _pruned(bench, dense.normalization, on, name, dense.saes[name, first])
    measured = _measure(bench, on, saes, dense.evaluation)
    rows, latents = measured.rows, pd.DataFrame()
    if main:
        asked = {v: sae for v, sae in saes.items() if v.sae == STANDARD and v.part in ("", BOTH)}
        latents = latents_left(condition, asked, measured.fitted, len(on.evaluation))
        tokens, batch = bench.tokens["evaluation"][: study.probe_windows], bench.params.activations.batch_windows
        labelled = prepare(on.model, bench.site, tokens, bench.attributes, dense.normalization.mean, batch)
        for variant, sae in progress(asked.items(), f"meaning {bench.place}", len(asked), "SAE"):
            rows[variant] |= measure_meaning(on.model, labelled, sae)
    compressor = _compressor(bench, dense, on, retrained[STANDARD, first], measured)
    shutil.rmtree(bench.scratch / condition)
    return Found(list(rows.values()), compressor, latents)


def _observe(bench: Bench, condition: str) -> Observed:
    """Load a compressed model, cache its activations, and read off what it predicts by itself."""
    settings, folder = bench.params.activations, bench.scratch / condition
    model = load_compressed(bench.place.cell(condition), bench.params.model(bench.place.model).dtype)
    folder.mkdir(parents=True)
    for split, tokens in bench.tokens.items():
        write_shards(model, bench.site, tokens, settings.batch_windows, settings.shard_windows, folder, split)
    entropy = window_cross_entropy(model, bench.tokens["evaluation"], settings.batch_windows)
    return Observed(condition, model, Shards(folder, "sae"), Shards(folder, "evaluation"), entropy)


def _train(
    bench: Bench, on: Observed, normalization: Normalization, asked: Sequence[tuple[str, Seed]]
) -> dict[tuple[str, Seed], Dictionary]:
    """Train SAEs on a model's activations and keep them; asked for by the name of their settings and their seed."""
    metadata = origin(bench.params, bench.place.model, on.condition, bench.site)
    jobs = {
        key: Job(bench.settings[key[0]], key[1], bench.folder / on.condition / key[0] / key[1].name) for key in asked
    }
    train_saes(list(jobs.values()), on.train, normalization, metadata)
    return {key: Dictionary.read(job.folder, on.train.width) for key, job in jobs.items()}


def _pruned(
    bench: Bench, normalization: Normalization, on: Observed, name: str, sae: Dictionary
) -> dict[Variant, Dictionary]:
    """The dense model's SAE at every level of pruning, calibrated on the compressed model's activations."""
    study = bench.params.variants
    ways = _ways(bench, on.condition, name)
    if not ways:
        return {}
    if name == RELEASED:  # it reads activations as they are
        normalization = Normalization(torch.zeros_like(normalization.mean), 1.0)
    norms = measure_norms(sae, normalization, on.fitted(len(on.evaluation)))
    return {
        Variant(name, PRUNED, study.seeds[0].name, score, part, level): prune_sae(
            sae, normalization, norms, score, level, study.group, part
        )
        for score, part in ways
        for level in study.levels
    }


def _ways(bench: Bench, condition: str, name: str) -> list[tuple[str, str]]:
    """Scores by which, and parts in which, an SAE is pruned: the standard one in every way on the main condition; any
    other, and any at a further condition, in both parts by the Wanda score; none on a mere compressor."""
    study = bench.params.variants
    if condition == study.condition and name == STANDARD:
        return [*((score, BOTH) for score in SAE_SCORES), ("wanda", ENCODER), ("wanda", DECODER)]
    return [("wanda", BOTH)] if condition in (study.condition, *study.further_conditions) else []


def _measure(bench: Bench, on: Observed, saes: Mapping[Variant, Dictionary], dense: Shards) -> Measured:
    """FVU, L0, CE-loss score and KL of SAEs on one model: the same tokens, the same split, the same model for all.

    dense: activations of the dense model on the evaluation tokens.
    """
    params = bench.params
    tokens, batch = bench.tokens["evaluation"][: params.variants.splice_windows], params.activations.batch_windows
    pretrained = Variant(STANDARD, PRETRAINED, params.variants.seeds[0].name)
    transfer = measure_transfer(saes[pretrained], dense.batches(ROWS), on.evaluation.batches(ROWS))
    found, fitted = {pretrained: transfer.compressed}, {}
    for variant, sae in progress(saes.items(), f"{bench.place} {on.condition}", len(saes), "SAE"):
        if variant != pretrained:
            found[variant] = measure_reconstruction(sae, on.evaluation.batches(ROWS))
        fitted[variant] = measure_reconstruction(sae, on.fitted(len(on.evaluation)))
    measured = measure_quality(on.model, bench.site, saes, found, tokens, batch)
    _check_left_alone(f"{bench.place} {on.condition}", measured.plain, on.entropy[: len(tokens)].mean().item())
    shared: Row = {
        "tokens": len(on.evaluation),
        "ce_without_sae": measured.plain,
        "ce_zero": measured.zero,
        "splice_tokens": len(tokens) * (tokens.shape[1] - 1),
    }
    rows: dict[Variant, Row] = {}
    for variant, quality in measured.saes.items():
        own = {**variant._asdict(), **quality._asdict(), "fvu_fitted": fitted[variant].fvu}
        rows[variant] = {"condition": on.condition, **own, **shared}
    return Measured(found, fitted, transfer, rows)


def _check_left_alone(where: str, found: float, expected: float) -> None:
    """InputError unless the model that SAEs were spliced into loses, without one, as much as it did before."""
    if abs(found - expected) > 1e-5 * expected:
        raise InputError(f"stage variants: {where}: ce_without_sae is {found:.6f}, the model's own {expected:.6f}")


def _compressor(bench: Bench, dense: Dense, on: Observed, retrained: Dictionary | None, measured: Measured) -> Row:
    """What a compressor costs, and what it does to the dense model's features: found again, and firing as before.

    retrained: the SAE of the first seed on the compressed model; None where that is the dense one.
    """
    seeds = bench.params.variants.seeds
    first = seeds[0]
    described = read_json(bench.place.cell(on.condition).prune / "condition.json")
    row: Row = {
        "condition": on.condition,
        "bits_per_weight": described["bits_per_weight"],
        "achieved_sparsity": described["achieved_sparsity"]["all"],
        "cross_entropy": on.entropy.mean().item(),
        "jaccard": measured.transfer.jaccard,
        f"{FIXED} of": int(dense.lives[first].sum()),
        FIXED: int((measured.transfer.correlation[dense.lives[first]] > KEPT).sum()),
    }
    for pairing, seed, of in pairs(seeds, [first], is_dense_cell=retrained is None):
        other = dense.saes[STANDARD, of] if retrained is None else retrained
        cosine = mutual_cosine(dense.saes[STANDARD, seed].W_dec, other.W_dec).cpu()[dense.lives[seed]]
        row |= {f"{pairing} of": len(cosine), pairing: int((cosine >= MAIN_TAU).sum())}
    for kind in (PRETRAINED, RETRAINED):
        found = measured.rows.get(Variant(STANDARD, kind, first.name))
        if found is not None:
            row |= {f"{name}_{kind}": found[name] for name in ("fvu", "ce_loss_score", "kl")}
    return row
