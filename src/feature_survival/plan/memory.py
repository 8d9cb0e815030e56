"""What each stage holds at its heaviest moments, and the setting that makes a moment lighter.

Counted: libraries, weights, what waits in lists, the largest temporaries of a batch, files that are mapped; and, where
stages keep freed memory (`launch.keep_memory`), places that stay empty: a tensor asks for its size and its alignment,
so that one of the same size does not fit where another was. `benchmarks/memory.py` checks it on 300M parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from feature_survival.compression.methods import METHODS
from feature_survival.config import Sae, Seed
from feature_survival.plan.devices import Device
from feature_survival.plan.shape import DOUBLE, FLOAT, HALF
from feature_survival.plan.work import Plan, form_bytes, settings_at, ways
from feature_survival.recipes import Recipe
from feature_survival.sae import CHUNK, ROWS

# Bytes of libraries, measured.
RUNTIME = 0.45e9  # Python, torch and transformers before anything is computed
TRAINING = 0.12e9  # what is loaded in addition where SAEs are trained
TABLES = 0.11e9  # pandas, scipy and pyarrow, where metrics are measured
TRAINED_ALONE = 0.38e9  # Python, torch and what our trainer loads: no model, no transformers
LIBRARIES = (TRAINED_ALONE, RUNTIME + TRAINING + TABLES)  # the fewest and the most of a stage
NORMALIZED = 65536  # activations that are normalised at a time
PAIRS = 256  # of tokens whose activations are exchanged, in either half: `disentanglement.prepare_interchange`
# Bytes a logit while a splice is measured: log-probabilities without it, their exponentials, log-probabilities of the
# last splice, logits, and the log-probabilities that become of them.
SPLICED = 5 * FLOAT
SPLICED_KEPT = 2 * FLOAT  # places of the first logits, and of a divergence's difference


class Moment(NamedTuple):
    """Bytes held at once."""

    what: str
    device: float
    host: float = 0.0  # beside the libraries, and beside the device's where that is the host
    setting: str = ""  # to lower for less
    kept: float = 0.0  # empty places, where the device is the host


class Peak(NamedTuple):
    """The most that a stage holds, on either side, and the moment at which the device holds it."""

    device: float
    host: float
    moment: Moment


def peak(plan: Plan, stage: str, device: Device) -> Peak:
    """The heaviest moments of one of `work.STAGES`. A device that is the host has one memory for both; a GPU's weights
    pass through the host's."""
    moments = list(_MOMENTS[stage](plan))
    most = max(moments, key=lambda moment: moment.device + (moment.host + moment.kept) * device.is_host)
    libraries = _libraries(plan, stage)
    if device.is_host:
        total = libraries + most.device + most.host + most.kept
        return Peak(total, total, most)
    loaded = plan.shape.weights if stage not in ("base", "sae") else 0
    return Peak(most.device, libraries + loaded + max(moment.host for moment in moments), most)


def _libraries(plan: Plan, stage: str) -> float:
    """Bytes of what a stage imports."""
    if stage == "sae":
        return TRAINED_ALONE if plan.params.sae.trainer == "sparse" else RUNTIME + TRAINING
    return RUNTIME + TABLES * (stage in ("metrics", "variants")) + TRAINING * (stage == "variants")


def _loaded(plan: Plan, beside: float = 0.0) -> Moment:
    """Weights, and where they are of another type than the checkpoint's, the mapped file."""
    of_hub = plan.params.model(plan.name).weights.hub is not None
    stored = 0 if of_hub or plan.shape.item == HALF else plan.shape.parameters * HALF
    return Moment("loading the model", plan.shape.weights + beside, stored)


def _base(plan: Plan) -> Iterator[Moment]:
    """Trained here: weights, gradients and two moments in float32; inner states of all blocks; logits four times."""
    training, shape = plan.params.model(plan.name).weights.training, plan.shape
    if training is None:
        yield Moment("downloading", 0.0)
        return
    tokens = training.batch_windows * plan.params.window
    inner = shape.blocks * tokens * (20 * shape.width + 6 * shape.inner) * HALF
    logits = tokens * shape.vocabulary * 4 * FLOAT
    total = 4 * FLOAT * shape.parameters + inner + logits
    yield Moment("training", total, 0.0, f"models.{plan.name}.weights.training.batch_windows")


def _prune(plan: Plan) -> Iterator[Moment]:
    """The model, and all forms of a condition. While a block is calibrated: hidden states of all windows, a batch of
    them inside the block, sums over its inputs, its dense weights; then temporaries of one matrix."""
    settings, shape, window = plan.params.prune, plan.shape, plan.params.window
    yield _loaded(plan)
    batch = settings.batch_windows * window
    inside = shape.activations(batch, window) + 2 * batch * shape.inner * FLOAT
    on_host = settings.hidden_states == "host"
    for recipe in plan.conditions().values():
        method, maps = METHODS[recipe.method], shape.block.values()
        held = shape.weights + shape.blocks * sum(_form(recipe, *weight) for weight in maps)
        yield Moment("writing a condition", held, shape.blocks * sum(form_bytes(recipe, *weight) for weight in maps))
        if recipe.group == "model":  # scores of all matrices, joined, sorted
            held += shape.prunable * (2 * FLOAT + FLOAT + 8)
        compressing = 2 * max(_temporary(recipe, *weight) for weight in maps)  # the allocator keeps one set back
        if not method.needs_inputs:
            yield Moment("compressing a matrix", held + compressing)
            continue
        hidden = settings.calibration_windows * window * shape.width * shape.item
        held += shape.block_numel * shape.item * recipe.sequential + (0 if on_host else hidden)
        held += sum(columns**2 for _, columns in maps) * DOUBLE * method.needs_gram
        gathering = 2 * shape.inner**2 * DOUBLE * method.needs_gram
        setting = "prune.batch_windows" if on_host else "prune.hidden_states (host)"
        waiting = hidden if on_host else 0
        yield Moment("compressing a matrix", held + compressing, waiting, "" if on_host else setting)
        yield Moment("calibrating a block", held + inside + gathering, waiting, setting)


def _form(recipe: Recipe, rows: int, columns: int) -> float:
    """One weight's form in memory: masks take a byte a weight, so do codes."""
    match recipe.method:
        case "svd" | "activation-svd":
            return form_bytes(recipe, rows, columns)
        case "sparsegpt":
            return rows * columns * (1 + HALF * (1 - recipe.sparsity))
        case "rtn" | "awq":
            return rows * columns * (1 + HALF / recipe.quantization_group)
    return rows * columns


def _temporary(recipe: Recipe, rows: int, columns: int) -> float:
    """Bytes while one matrix is compressed: float32 scores and their order; float64 work of the other methods."""
    numel, square = rows * columns, columns**2 * DOUBLE
    match recipe.method:
        case "sparsegpt":
            return 2 * numel * DOUBLE + 6 * square
        case "awq":
            return 6 * numel * DOUBLE + square
        case "svd":
            return 5 * numel * DOUBLE
        case "activation-svd":
            return 5 * numel * DOUBLE + 4 * square
    return numel * (2 * FLOAT + FLOAT + 8)


def _reading(plan: Plan, site: str, windows: int, beside: float) -> Iterator[Moment]:
    """Activations of one shard, joined, while a batch is in the model."""
    settings, shape, window = plan.params.activations, plan.shape, plan.params.window
    width, batch = plan.width_at(site), settings.batch_windows * window
    shard = min(settings.shard_windows, windows) * (window - 1) * width * HALF
    inside = shape.activations(batch, window) + batch * width * FLOAT
    yield Moment("a batch of windows", shape.weights + beside + shard + inside, 0.0, "activations.batch_windows")
    yield Moment("joining a shard", shape.weights + beside + 2 * shard, shard, "activations.shard_windows")


def _cache(plan: Plan) -> Iterator[Moment]:
    """The model, a shard; then the normalisation in float64, over the mapped split."""
    settings, site = plan.params.activations, plan.params.study.site
    yield _loaded(plan)
    yield from _reading(plan, site, settings.sae_windows, 0.0)
    rows, width = settings.sae_windows * (plan.params.window - 1), plan.width_at(site)
    sums = min(rows, NORMALIZED) * width * (FLOAT + 2 * DOUBLE)
    yield Moment("normalising", plan.shape.weights, sums + rows * width * HALF, "activations.sae_windows")


def _training(together: list[Sae], width: int, held: float = 0.0, mapped: float = 0.0) -> Iterator[Moment]:
    """SAEs that share a pass over the shards, and one of them in its step.

    Each holds nine times a matrix: where decoder rows started, two weights, their gradients, two moments of both; and
    leaves the places of its rows as drawn and as normalised. A step adds new gradients beside the old; a batch's codes
    before and behind the decoder's norm. Reviving, at most all features, adds decoder rows and two gradients over three
    of a batch's codes, or the rows over four. At the end: weights as they are stored, and for the cosines three
    temporaries; both matrices in half precision, and as bytes. sae-lens's trainer is measured as a whole.
    """
    matrix, codes = width * width * FLOAT, width * FLOAT * max(of.expansion * of.batch_tokens for of in together)
    every, largest = matrix * sum(of.expansion for of in together), matrix * max(of.expansion for of in together)
    if together[0].trainer == "sae_lens":
        yield Moment("a step", held + 13 * every + 2 * largest + 10 * codes, mapped + largest, "sae.batch_tokens")
        return
    held += 9 * every
    reviving = max(3 * largest + 3 * codes, largest + 4 * codes) if together[0].auxiliary_coefficient else 0
    yield Moment("a step", held + 2 * largest + 2 * codes + reviving, mapped, "sae.batch_tokens", 2 * every)
    yield Moment("writing an SAE", held + 5 * largest, mapped + 2 * largest, "sae.expansion", 2 * every)


def _together(asked: list[tuple[Sae, Seed]]) -> list[Sae]:
    """Those that share a pass where most do."""
    orders = [(of.batch_tokens, of.epochs, seed.data) for of, seed in asked]
    most = max(orders, key=orders.count)
    return [of for (of, _), order in zip(asked, orders, strict=True) if order == most]


def _sae(plan: Plan) -> Iterator[Moment]:
    """The SAEs; the mapped activations, and their order."""
    settings, width = plan.params.sae, plan.width_at(plan.params.study.site)
    rows = plan.params.activations.sae_windows * (plan.params.window - 1)
    asked = [(settings, seed) for seed in plan.params.seeds.dense]
    yield from _training(_together(asked), width, 0.0, rows * (width * HALF + 8))


def _predicting(plan: Plan, windows: int, window: int) -> float:
    """A batch's cross-entropy: logits, in float32, and their logarithms; without the last position, copied."""
    each = 3 * FLOAT if plan.shape.item == FLOAT else 2 * FLOAT
    return plan.shape.weights + windows * window * plan.shape.vocabulary * each


def _metrics(plan: Plan) -> Iterator[Moment]:
    """All SAEs of a cell in float32, and in turn: two models' codes; all cosines of two SAEs, on the host in float64
    twice; the model with log-probabilities of a batch; the model in float32, beside itself until all is converted, with
    the effects of features. What a moment leaves empty serves the next."""
    params, shape, settings = plan.params, plan.shape, plan.params.metrics
    width, batch = plan.width_at(params.study.site), params.activations.batch_windows
    features, rows = params.sae.expansion * width, params.activations.evaluation_windows * (params.window - 1)
    count = len(params.seeds.dense) + max(len(params.sae_seeds(name)) for name in params.study.conditions)
    saes, mapped = count * 2 * width * features * FLOAT, 2 * rows * width * HALF
    yield _loaded(plan, saes)
    codes = _codes(rows, width, features)
    yield Moment("transfer", saes + codes, mapped, "", codes)  # each of its tensors beside the place of the last
    cosines = features * features
    yield Moment("matching", saes + cosines * FLOAT, mapped + cosines * 2 * DOUBLE, "sae.expansion")
    yield from _splicing(plan, shape.weights + saes, mapped)
    single = shape.parameters * FLOAT
    if shape.item != FLOAT:
        yield Moment("converting the model", single + shape.weights + saes, mapped)
    yield Moment("effects", single + saes + _effects(plan), mapped, "activations.batch_windows")
    if _running(plan):
        long = settings.perplexity.window
        text = _predicting(plan, max(1, batch * params.window // long), long)
        yield Moment("perplexity", saes + text, mapped, "activations.batch_windows")


def _running(plan: Plan) -> bool:
    hub = plan.params.model(plan.name).weights.hub
    return hub is not None and hub.text.perplexity is not None


def _codes(rows: int, width: int, features: int) -> float:
    """Encoding activations a piece at a time: what TopK sees; dense codes of two models and their products."""
    encoding = min(rows, ROWS) * (features * FLOAT + width * 3 * DOUBLE)
    return encoding + min(rows, CHUNK) * features * FLOAT


def _effects(plan: Plan) -> float:
    """Log-probabilities while features are ablated: a batch of windows', where any of them fires, beside the last
    batch's and their logits; then of a batch of pairs, where its own fires, six at a time."""
    params, shape, settings = plan.params, plan.shape, plan.params.metrics
    features = params.sae.expansion * plan.width_at(params.study.site)
    windows = min(params.activations.batch_windows, settings.causal_features * settings.causal_windows)
    fired = 1 + params.window * params.sae.k / features
    plain = windows * params.window
    return shape.vocabulary * FLOAT * max(3 * plain, plain + 6 * windows * fired)


def _splicing(plan: Plan, held: float, mapped: float) -> Iterator[Moment]:
    """Beside what is held: log-probabilities of a batch of windows, with and without a splice."""
    params, shape = plan.params, plan.shape
    logits = params.activations.batch_windows * (params.window - 1) * shape.vocabulary
    setting = "activations.batch_windows"
    yield Moment("splicing", held + logits * SPLICED, mapped, setting, logits * SPLICED_KEPT)


def _variants(plan: Plan) -> Iterator[Moment]:
    """A model; every SAE of both; their mapped activations; codes of all probed tokens."""
    params, study = plan.params, plan.params.variants
    for site in study.sites:
        width, levels = plan.width_at(site), len(study.levels)
        rows = (study.sae_windows + study.evaluation_windows) * (params.window - 1)
        settings = settings_at(plan, site)
        dense = [settings[0]] * (len(study.seeds) - 1) + settings
        others = [settings[0]] * (1 + ways(plan, study.condition) * levels)
        others += [of for of in settings[1:] for _ in range(1 + levels)]
        saes = sum(2 * width * of.expansion * width * FLOAT for of in (*dense, *others))
        held, mapped = plan.shape.weights + saes, 2 * rows * width * HALF
        features = params.sae.expansion * width
        yield from _reading(plan, site, study.sae_windows, plan.shape.weights + saes)
        asked = [(of, seed) for of in settings for seed in (study.seeds if of is settings[0] else study.seeds[:1])]
        yield from _training(_together(asked), width, held, mapped)
        codes = _codes(rows, width, features)
        yield Moment("encoding", held + codes, mapped, "", codes)
        yield from _splicing(plan, held, mapped)
        probed, paired = study.probe_windows * (params.window - 1), PAIRS * (params.window - 1)
        cache = paired * plan.shape.cached
        # Three sites read, in batches and joined; the passes up to either half's pairs, in one batch, and their caches.
        inside = probed * 6 * width * FLOAT + plan.shape.activations(paired, params.window)
        yield Moment("pairs of tokens", held + 2 * cache + inside, mapped, "window")
        # A pass that goes on from a cache writes it anew, with the token that it adds.
        meaning = probed * (features * 2 + width * 4) * FLOAT + 3 * cache
        yield Moment("what latents mean", held + meaning, mapped, "variants.probe_windows")


_MOMENTS: dict[str, Callable[[Plan], Iterator[Moment]]] = {
    "base": _base,
    "prune": _prune,
    "cache": _cache,
    "sae": _sae,
    "metrics": _metrics,
    "variants": _variants,
}
