"""What each stage does: FLOPs, bytes, and what it leaves on disk. The counts are the stages' own loops."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from feature_survival.catalogue import Site
from feature_survival.compression.methods import METHODS, rank_of
from feature_survival.compression.quantize import ALPHAS
from feature_survival.config import Params, Sae
from feature_survival.metrics import PARTS, SAE_SCORES
from feature_survival.metrics.survival import pairs
from feature_survival.plan.devices import Work
from feature_survival.plan.shape import DOUBLE, FLOAT, HALF, Shape, encoded, matched, nearest, trained, transferred
from feature_survival.pretrain import EVALUATIONS, HELD_OUT_WINDOWS
from feature_survival.recipes import Recipe

PERPLEXITY_TOKENS = 300_000  # of the running text (WikiText-2's test split): an assumption
PROBING = 3e-5  # seconds on the host an SAE and token, for all probes: from profiles of the default grid


class Stage(NamedTuple):
    """One stage of one model, over all its cells or sites."""

    work: Work
    kept: float  # bytes it leaves on disk
    processes: int  # each loads the libraries anew


class Plan(NamedTuple):
    """A model, the settings its budget gives it, and its sizes."""

    params: Params
    name: str
    shape: Shape

    @classmethod
    def of(cls, params: Params, name: str) -> Plan:
        """InputError for an unknown model, or one whose budget does not fit."""
        params = params.for_model(name)
        return cls(params, name, Shape.of(params.model(name)))

    def width_at(self, site: str) -> int:
        """Width of the activations at a site, by its name."""
        return self.shape.site_width(self.params.model(self.name).site(site))

    def conditions(self) -> dict[str, Recipe]:
        """Every compression that is computed, filled in."""
        recipes = {name: self.params.recipe(name) for name in self.params.compressed()}
        return {name: recipe for name, recipe in recipes.items() if recipe.method in METHODS}

    def stage(self, name: str) -> Stage:
        """The work of one of `STAGES`."""
        return STAGES[name](self)


def sae_bytes(width: int, features: int) -> float:
    """A stored SAE: matrices in half precision, biases and movement in full."""
    return 2 * width * features * HALF + (2 * features + width) * FLOAT


def form_bytes(recipe: Recipe, rows: int, columns: int) -> float:
    """What one weight takes on disk under a recipe (see `compression.forms`)."""
    numel = rows * columns
    if recipe.method in ("svd", "activation-svd"):
        return rank_of(recipe, (rows, columns)) * (rows + columns) * HALF
    if recipe.method in ("rtn", "awq"):
        codes = rows * ceil(columns / 2) if recipe.bits <= 4 else numel
        channels = columns * HALF if recipe.method == "awq" else 0
        return codes + numel / recipe.quantization_group * HALF + channels + 1
    values = numel * (1 - recipe.sparsity) * HALF if recipe.method == "sparsegpt" else 0
    return rows * ceil(columns / 8) + values


def condition_bytes(plan: Plan, recipe: Recipe) -> float:
    """What one compressed model takes on disk."""
    return plan.shape.blocks * sum(form_bytes(recipe, *shape) for shape in plan.shape.block.values())


def _base(plan: Plan) -> Stage:
    """Trained here: three forward passes' worth a token (the backward one counts twice), and the held-out windows;
    a hub's: the checkpoint is downloaded, in its own type."""
    spec, shape = plan.params.model(plan.name), plan.shape
    if spec.weights.training is None:
        size = shape.weights
        return Stage(Work(read=size, written=size), size, 1)
    training, window = spec.weights.training, plan.params.window
    held_out = EVALUATIONS * HELD_OUT_WINDOWS * window
    half = shape._replace(item=HALF)  # autocast
    steps = training.tokens / (training.batch_windows * window)
    work = half.forward(training.tokens, window) * 3 + shape.forward(held_out, window) + Work(steps=steps)
    size = shape.parameters * HALF
    return Stage(work + Work(written=size), size, 1)


def _prune(plan: Plan) -> Stage:
    """One process a model. A method that reads inputs passes the calibration tokens through every block, twice if
    `sequential`; second moments add 2 FLOPs a token and pair of inputs. The dense condition stores nothing."""
    settings, shape = plan.params.prune, plan.shape
    tokens = settings.calibration_windows * plan.params.window
    work, kept = Work(read=shape.weights), 0.0
    for recipe in plan.conditions().values():
        method = METHODS[recipe.method]
        if method.needs_inputs:
            work += shape.passed(tokens, plan.params.window, shape.blocks) * (2 if recipe.sequential else 1)
            moments = sum(2 * columns * columns for _, columns in shape.block.values()) * tokens * method.needs_gram
            work += Work(
                single=shape.blocks * moments, moved=shape.blocks * len(shape.block) * tokens * shape.width * 8
            )
        for weight in shape.block.values():
            work += _compressed(recipe, *weight) * shape.blocks
        kept += condition_bytes(plan, recipe)
    return Stage(work + Work(written=kept), kept, 1)


def _compressed(recipe: Recipe, rows: int, columns: int) -> Work:
    """Compressing one matrix. Scores are sorted; SparseGPT inverts the second moments (4/3 n^3) and updates all columns
    behind each (rows n^2); AWQ measures each candidate's output error; an SVD of m x n, n the shorter, takes 6 m n^2 +
    20 n^3 FLOPs (Golub & Van Loan), eigenvectors 9 n^3."""
    numel = rows * columns
    match recipe.method:
        case "sparsegpt":
            return Work(double=4 / 3 * columns**3 + rows * columns**2, moved=numel * 100 * DOUBLE)
        case "awq":
            return Work(double=len(ALPHAS) * 2 * rows * columns**2, moved=len(ALPHAS) * numel * 60)
        case "svd" | "activation-svd":
            short, long = sorted((rows, columns))
            svd = Work(
                factored=6 * long * short**2 + 20 * short**3, double=2 * numel * rank_of(recipe, (rows, columns))
            )
            weighting = Work(factored=9 * columns**3, double=2 * rows * columns**2)
            return svd + weighting if recipe.method == "activation-svd" else svd
        case "rtn":
            return Work(moved=numel * 40)
    return Work(moved=numel * 200)


def _read_model(plan: Plan, condition: str | None = None) -> Work:
    """Base weights, and what a condition changes of them."""
    recipe = plan.conditions().get(condition or "")
    return Work(read=plan.shape.weights + (condition_bytes(plan, recipe) if recipe else 0))


def _activations(plan: Plan, site: str, windows: int) -> Stage:
    """A model's activations at a site: passes through the blocks up to the site's, which counts whole; all positions
    but the first are stored, in half precision."""
    spec, window = plan.params.model(plan.name), plan.params.window
    stored = windows * (window - 1) * plan.width_at(site) * HALF
    work = plan.shape.passed(windows * window, window, spec.site(site).block + 1)
    return Stage(work + Work(written=stored, moved=4 * stored), stored, 0)


def _cache(plan: Plan) -> Stage:
    """Both splits of every cell; the dense cell reads its own twice for the normalisation."""
    settings, conditions = plan.params.activations, plan.params.study.conditions
    one = _activations(plan, plan.params.study.site, settings.sae_windows + settings.evaluation_windows)
    work = one.work * len(conditions)
    for condition in conditions:
        work += _read_model(plan, condition)
    return Stage(work + Work(read=2 * one.kept), one.kept * len(conditions), len(conditions))


def _sae(plan: Plan) -> Stage:
    """One SAE a pair of seeds of every cell."""
    settings, width = plan.params.sae, plan.width_at(plan.params.study.site)
    tokens = plan.params.activations.sae_windows * (plan.params.window - 1) * settings.epochs
    features = settings.expansion * width
    count = sum(len(plan.params.sae_seeds(condition)) for condition in plan.params.study.conditions)
    size = count * sae_bytes(width, features)
    work = trained(settings, width, tokens) * count + Work(written=size)
    return Stage(work, size, len(plan.params.study.conditions))


def _metrics(plan: Plan) -> Stage:
    """Every cell: each dense SAE on two models; its own SAEs (in the dense cell the same); a forward pass over the
    evaluation tokens, one over the running text; splices of zeros and of SAEs; matching of all pairs. The dense cell:
    each feature ablated in two ways, in as many windows as are asked, from the site on, logits where it fires."""
    params, shape = plan.params, plan.shape
    settings, window, width = params.metrics, params.window, plan.width_at(params.study.site)
    features = params.sae.expansion * width
    rows = params.activations.evaluation_windows * (window - 1)
    spliced = settings.splice_windows * window
    work, kept = Work(), 0.0
    for condition in params.study.conditions:
        dense, own = params.seeds.dense, params.sae_seeds(condition)
        compared = len(list(pairs(dense, own, condition == "dense"))) + len(dense) * (condition == "dense")
        retrained = len(own) * (condition != "dense")
        saes = len(dense) + retrained
        work += _read_model(plan, condition) + transferred(width, features, rows) * len(dense)
        work += encoded(width, features, rows) * retrained + matched(width, features) * compared
        # Of what is spliced into, the first of them is the plain pass over its windows.
        work += shape.forward(params.activations.evaluation_windows * window - spliced, window) + _running_text(plan)
        work += splices(shape, params.model(plan.name).site(params.study.site), spliced, window, saes)
        work += encoded(width, features, spliced) * saes
        work += Work(read=rows * width * HALF * (2 * len(dense) + retrained) + saes * sae_bytes(width, features))
        kept += features * (len(dense) * 70 + compared * 20)  # parquet rows, compressed
    return Stage(work + _causal(plan) + Work(written=kept), kept, len(params.study.conditions))


def splices(shape: Shape, site: Site, tokens: float, window: int, saes: int) -> Work:
    """The model itself: a forward pass. A site of zeros and each SAE: one resumed at the site's block, and a divergence
    to the model's own. The head leaves out a window's last position."""
    predicted = tokens * (1 - 1 / window)
    resumed = shape.passed(tokens, window, shape.blocks - _behind(site)) + shape.predicted(predicted)
    divergence = Work(moved=predicted * shape.vocabulary * 5 * FLOAT)
    return shape.passed(tokens, window, shape.blocks) + shape.predicted(predicted) + (resumed + divergence) * (1 + saes)


def _behind(site: Site) -> int:
    """The first block that runs again where only a site's activations change."""
    return site.block + 1 if site.point == "resid_post" else site.block


def _running_text(plan: Plan) -> Work:
    """Perplexity of a hub model on its running text, in windows that overlap."""
    hub, settings = plan.params.model(plan.name).weights.hub, plan.params.metrics.perplexity
    if hub is None or hub.text.perplexity is None:
        return Work()
    return plan.shape.forward(PERPLEXITY_TOKENS / settings.stride * settings.window, settings.window)


def _causal(plan: Plan) -> Work:
    """Ablations in the dense cell: at most, as if every feature fired in `causal_windows` windows to their ends."""
    params, shape, window = plan.params, plan.shape, plan.params.window
    site = params.model(plan.name).site(params.study.site)
    first = _behind(site)
    features = params.sae.expansion * plan.width_at(params.study.site)
    passes = len(params.seeds.compressed) * params.metrics.causal_features * params.metrics.causal_windows * 2
    fired = 1 + window * params.sae.k / features
    once = shape.forward(params.activations.evaluation_windows * window, window) * len(params.seeds.compressed)
    return once + shape.passed(passes * window, window, shape.blocks - first) + shape.predicted(passes * fired)


def _variants(plan: Plan) -> Stage:
    """One process a site, over the dense model and every compressed one that is looked at there: its activations (gone
    when the stage ends), its SAEs trained, the dense ones pruned; every SAE read on two sets of tokens and spliced; on
    the main condition what latents mean."""
    study = plan.params.variants
    work, kept = Work(), 0.0
    for site in study.sites:
        for condition in ("dense", *study.conditions(site)):
            one = _variants_on(plan, site, condition)
            work, kept = work + one.work, kept + one.kept
    return Stage(work, kept, len(study.sites))


def settings_at(plan: Plan, site: str) -> list[Sae]:
    """The standard SAE of a site of the second study, and those with less to lose."""
    study, standard = plan.params.variants, plan.params.sae
    redundancy = study.redundancy.values() if site == study.sites[0] else []
    return [standard, *(standard.model_copy(update=of.model_dump(exclude_none=True)) for of in redundancy)]


def ways(plan: Plan, condition: str) -> int:
    """In how many ways the standard SAE is pruned on a condition, each at every level."""
    study = plan.params.variants
    if condition == study.condition:
        return len(SAE_SCORES) + len(PARTS) - 1
    return int(condition in study.further_conditions)


def _variants_on(plan: Plan, site: str, condition: str) -> Stage:
    params, shape, study = plan.params, plan.shape, plan.params.variants
    window, width = params.window, plan.width_at(site)
    rows, fitted = (windows * (window - 1) for windows in (study.evaluation_windows, study.sae_windows))
    main, pruning = condition == study.condition, ways(plan, condition)
    settings = settings_at(plan, site) if main or condition == "dense" else [params.sae]
    seeds = [len(study.seeds), *[1] * (len(settings) - 1)] if condition == "dense" else [1] * len(settings)
    work, kept, saes = _activations(plan, site, study.sae_windows + study.evaluation_windows).work, 0.0, 0
    for number, (of, count) in enumerate(zip(settings, seeds, strict=True)):
        features = of.expansion * width
        pruned = (pruning if number == 0 else min(pruning, 1)) * len(study.levels)
        read = count if condition == "dense" else 2 + pruned
        work += trained(of, width, fitted * of.epochs) * count
        work += encoded(width, features, 2 * rows + study.splice_windows * window) * read
        work += Work(
            moved=pruned * width * features * 200, read=read * 2 * rows * width * HALF
        )  # sorted as weights are
        kept += count * sae_bytes(width, features)
        saes += read
    hub = params.model(plan.name).weights.hub
    released = int(hub is not None and site in hub.saes) * (1 + min(pruning, 1) * len(study.levels))
    features = params.sae.expansion * width
    work += encoded(width, features, 2 * rows + study.splice_windows * window) * released
    work += transferred(width, features, rows) + nearest(width, features) * len(study.seeds)
    where = params.model(plan.name).site(site)
    work += splices(shape, where, study.splice_windows * window, window, saes + released) + _read_model(plan, condition)
    work += shape.forward((study.evaluation_windows + study.splice_windows) * window, window)
    if main:
        work += _meaning(plan, width, features, 2 + len(SAE_SCORES) * len(study.levels))
    return Stage(work + Work(written=kept), kept, 0)


def _meaning(plan: Plan, width: int, features: int, saes: int) -> Work:
    """Two passes over the probe windows; every SAE's codes twice; means of codes a class; probes on the host."""
    tokens = plan.params.variants.probe_windows * plan.params.window
    read = plan.shape.passed(tokens, plan.params.window, 2 * plan.shape.blocks)
    codes = encoded(width, features, 2 * tokens) + Work(moved=40 * tokens * features * FLOAT, host=PROBING * tokens)
    return read + codes * saes


STAGES: dict[str, Callable[[Plan], Stage]] = {
    "base": _base,
    "prune": _prune,
    "cache": _cache,
    "sae": _sae,
    "metrics": _metrics,
    "variants": _variants,
}
