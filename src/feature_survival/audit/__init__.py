"""`feature-survival audit`: the studies' questions, asked of one compressed checkpoint made by any tool."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import feature_survival
from feature_survival.activations import Shards, measure_normalization, write_shards
from feature_survival.artifacts import atomic_directory, atomic_file, read_json, write_json
from feature_survival.atomic import is_running
from feature_survival.audit.checkpoint import check_alike, load_dense, locate, outline
from feature_survival.audit.features import describe, rank
from feature_survival.audit.measure import fixed_dictionary, language
from feature_survival.audit.page import render
from feature_survival.audit.request import K, Request
from feature_survival.audit.text import Words, read
from feature_survival.audit.training import BASE, BASE_SEEDS, COMPRESSED, Trained, survival, train
from feature_survival.audit.verdict import FEW, POOR, judge
from feature_survival.audit.weights import compare
from feature_survival.catalogue import Site, site_named
from feature_survival.hub import fetch_sae
from feature_survival.launch import enough_memory
from feature_survival.metrics import RETRAINED
from feature_survival.metrics.quality import measure_quality
from feature_survival.metrics.reconstruction import measure_reconstruction
from feature_survival.metrics.transfer import measure_transfer
from feature_survival.models import load, site_width
from feature_survival.progress import progress
from feature_survival.sae import ROWS, Dictionary
from feature_survival.schema import InputError
from feature_survival.text import Vocabulary, read_vocabulary
from feature_survival.thresholds import DAMAGED, KEPT, MAIN_TAU, VIABLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPLICES = 192  # windows in which SAEs are spliced into a model
SHARD = 512  # windows a file of activations
SCRATCH = ".audit-"  # leads the name of a folder of activations, gone when the audit ends
SAES = "saes"  # folder of those that were trained


class Inputs(NamedTuple):
    """Everything that was given, found to fit together."""

    base: Path
    compressed: Path
    vocabulary: Vocabulary
    site: Site
    words: dict[str, Words]  # by split
    sae: Dictionary | None
    sae_site: str | None  # where the SAE says that it reads
    sae_centred: bool  # whether it says that its model's writing weights had been centred
    k: int  # of the SAEs trained


class Result(NamedTuple):
    """What an audit leaves."""

    report: dict[str, Any]
    page: Path
    numbers: Path


def run(request: Request) -> Result:
    """Audit, and write `audit.html` and `audit.json` (and the SAEs trained, `saes/`) to the folder asked for.

    InputError, in one line, for whatever does not fit; then nothing is written.
    """
    out = request.out
    with _scratch(out) as scratch:
        report = _audit(request, _gather(request, scratch), scratch)
        if request.train_sae:
            with atomic_directory(out / SAES) as folder:
                shutil.copytree(scratch / SAES, folder, dirs_exist_ok=True)
    page, numbers = out / "audit.html", out / "audit.json"
    with atomic_file(numbers) as json_file, atomic_file(page) as html_file:
        write_json(json_file, report)
        html_file.write_text(render(report), encoding="utf-8")
    return Result(report, page, numbers)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder inside `out` that is gone afterwards, with what a kill left of an earlier one; an `out` that stays empty
    goes too."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for leftover in out.glob(f"{SCRATCH}*"):
            owner = leftover.name.split("-")[1]
            if owner.isdigit() and not is_running(int(owner)):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-", dir=out)
    except OSError as error:
        raise InputError(f"--out: {out}: not a folder that can be written ({error.strerror})") from None
    try:
        with folder as name:
            yield Path(name)
    except BaseException:
        if not any(out.iterdir()):
            out.rmdir()
        raise


def _gather(request: Request, scratch: Path) -> Inputs:
    """Check one input against the other, cheapest first; no weights are read but the SAE's."""
    site = Site.parse(request.site)
    base, compressed = locate("base", request.base), locate("compressed", request.compressed)
    model = outline(base)
    width = site_width(model, site)
    check_alike(base, compressed, model)
    longest = getattr(model.config, "max_position_embeddings", None)
    if isinstance(longest, int) and request.window > longest:
        raise InputError(f"--window: {request.window} asked, the model has {longest} positions")
    sae: Dictionary | None = None
    metadata: dict[str, Any] = {}
    if request.sae is not None:
        folder = _sae_folder(request.sae, scratch)
        sae = Dictionary.read(folder, width)
        metadata = read_json(folder / "cfg.json").get("metadata") or {}
    k = request.k or (sae and sae.k) or K  # that of the SAE given, so that retraining is all that differs
    if request.train_sae and k > (features := request.expansion * width):
        raise InputError(f"--k: {k} asked, the SAE has {features} features (--expansion x {width})")
    vocabulary = read_vocabulary(base)
    words = read(request, vocabulary, scratch)
    highest, room = max(int(of.tokens.max()) for of in words.values()), model.get_input_embeddings().num_embeddings
    if highest >= room:
        raise InputError(f"--base: {base}: its tokenizer gives token {highest}, its model has {room}")
    centred = bool((metadata.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    return Inputs(base, compressed, vocabulary, site, words, sae, site_named(metadata.get("hook_name")), centred, k)


def _sae_folder(name: str, scratch: Path) -> Path:
    """The folder of an SAE that is given as a folder, or as `release:sae_id` of sae-lens's list."""
    if Path(name).is_dir():
        return Path(name)
    release, colon, sae_id = name.partition(":")
    if not colon or not release or not sae_id:
        raise InputError(f"--sae: {name}: no such folder; allowed: a folder in SAELens's format, or release:sae_id")
    fetch_sae(release, sae_id, scratch / "sae")
    return scratch / "sae"


def _audit(request: Request, inputs: Inputs, scratch: Path) -> dict[str, Any]:
    """Everything that is measured, as plain data."""
    with enough_memory("audit, loading both models", "take --dtype bfloat16, or --device cpu"):
        base = load(inputs.base, request.dtype)
        dtype: Any = str(base.dtype).removeprefix("torch.")
        models = {BASE: base, COMPRESSED: load_dense(inputs.compressed, dtype)}
    tokens = inputs.words["evaluation"].tokens
    report: dict[str, Any] = {
        "settings": {**request.model_dump(mode="json"), "dtype": dtype, "device": str(base.device)},
        "versions": {name: version(name) for name in ("torch", "transformers", "sae-lens")}
        | {"feature-survival": feature_survival.__version__},
        "thresholds": {"viable": VIABLE, "kept": KEPT, "damaged": DAMAGED, "few": FEW, "poor": POOR, "tau": MAIN_TAU},
        "text": {split: {"tokens": of.predicted, "windows": len(of.tokens), "documents": of.documents}
                 for split, of in inputs.words.items()},
        "weights": compare(base, models[COMPRESSED]),
        "language": language(models, tokens, request.batch),
        "sae": None,
        "survival": None,
        "features": None,
    }  # fmt: skip
    if inputs.sae is None and not request.train_sae:
        return report | {"verdict": judge(report)}
    for name, model in models.items():
        _cache(model, inputs, request.batch, scratch / name)
    trained = None
    if request.train_sae:
        with enough_memory("audit, training SAEs", f"lower --expansion ({request.expansion})"):
            trained = train(request, inputs.k, scratch / BASE, scratch / COMPRESSED, scratch / SAES)
        report["training"] = {**trained.cfg.model_dump(), "tokens": inputs.words["sae"].predicted}
        report["survival"] = survival(trained, inputs.words["evaluation"].predicted)
    report |= _on_sae(request, inputs, models, trained, scratch)
    return report | {"verdict": judge(report)}


def _cache(model: PreTrainedModel, inputs: Inputs, batch: int, folder: Path) -> None:
    """A model's activations of every split. InputError where they are the same on every token."""
    folder.mkdir()
    for split, words in inputs.words.items():
        write_shards(model, inputs.site, words.tokens, batch, SHARD, folder, split)
    if measure_normalization(Shards(folder, "evaluation")).scale < 1e-9:
        raise InputError(f"--{folder.name}: activations at {inputs.site} are the same on every token; try another site")


def _finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """What cannot be told, NaN, as JSON has it."""
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _on_sae(
    request: Request, inputs: Inputs, models: dict[str, PreTrainedModel], trained: Trained | None, scratch: Path
) -> dict[str, Any]:
    """The SAE given, or the first one trained on the base: what it leaves of both models, and its features."""
    first = BASE_SEEDS[0]
    sae, tokens = inputs.sae, inputs.words["evaluation"].tokens
    shards = {name: Shards(scratch / name, "evaluation") for name in models}
    if sae is None:
        assert trained is not None
        sae, transfer = trained.base[first], trained.transfers[first]
    else:
        with enough_memory("audit, encoding", f"take an SAE of fewer features than {len(sae.b_enc):,}"):
            transfer = measure_transfer(sae, *(of.batches(ROWS) for of in shards.values()))
    saes = {BASE: {BASE: sae}, COMPRESSED: {COMPRESSED: sae}}
    found = {BASE: transfer.dense, COMPRESSED: transfer.compressed}
    if trained is not None:
        saes[COMPRESSED][RETRAINED] = own = trained.compressed[first]
        found[RETRAINED] = measure_reconstruction(own, shards[COMPRESSED].batches(ROWS))
    on: dict[str, Any] = {}
    for name, model in progress(models.items(), "SAE spliced in", len(models), "model"):
        measured = measure_quality(model, inputs.site, saes[name], found, tokens[:SPLICES], request.batch)
        on |= {name: _finite(quality._asdict()) for name, quality in measured.saes.items()}
    rows = inputs.words["evaluation"].predicted
    return {
        "sae": {
            "source": request.sae if inputs.sae is not None else "trained on the base",
            "site": inputs.sae_site,
            "centred": inputs.sae_centred,
            "on": on,
            "splice_tokens": len(tokens[:SPLICES]) * (tokens.shape[1] - 1),
            "fixed": fixed_dictionary(transfer, rows),
        },
        "features": describe(
            rank(transfer, rows), sae, transfer, list(shards.values()), tokens, inputs.vocabulary.tokenizer
        ),
    }
