"""The only reader of params.yaml: a frozen, fully checked description of the study.

Every section is a model of its own, so that a wrong key or value is refused before anything runs, in one
line that names the key, what was found and what is allowed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from feature_survival.catalogue import Device, Model
from feature_survival.recipes import GROUPS, METHOD_KEYS, PRUNING, Condition, Group, Recipe, pattern
from feature_survival.schema import InputError, Section, read_yaml, set_key, unknown, validate
from feature_survival.thresholds import MAIN_TAU


class Seed(NamedTuple):
    """One SAE's two seeds: `init` draws the starting weights, `data` the order of tokens."""

    init: int
    data: int

    @property
    def name(self) -> str:
        """Folder name of the SAE, e.g. `init0-data1`."""
        return f"init{self.init}-data{self.data}"


def _distinct(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return names


Distinct = Annotated[list[str], AfterValidator(_distinct)]
Names = Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)]


class Study(Section):
    """The first study's grid, every model crossed with every condition, at one site; and which figures are drawn."""

    bases: Names  # every model that this section or section `variants` uses
    models: Names
    conditions: Names
    site: str  # by its name in a model's `sites`
    figures: list[str]


class Shares(Section):
    """Share of the documents in each split; they sum to 1."""

    lm: PositiveFloat
    calibration: PositiveFloat
    sae: PositiveFloat
    evaluation: PositiveFloat

    @model_validator(mode="after")
    def _sum_to_one(self) -> Shares:
        total = sum(self.model_dump().values())
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the four shares sum to {total:g}, not to 1")
        return self


class Corpus(Section):
    """The embedded corpus: which pinned packages give their docstrings, and how documents are split."""

    packages: Annotated[list[str], Field(min_length=1)]
    shortest_document: PositiveInt  # characters
    shares: Shares


class Prune(Section):
    """Defaults of all conditions: groups, and calibration (windows through the model, in batches)."""

    group: Literal["row", "matrix", "model"]
    sequential: bool
    quantization_group: PositiveInt
    calibration_windows: PositiveInt
    batch_windows: PositiveInt
    hidden_states: Literal["device", "host"]  # where those of the calibration windows wait between blocks


class Activations(Section):
    """What the cache stage stores for each cell."""

    sae_windows: PositiveInt
    evaluation_windows: PositiveInt
    batch_windows: PositiveInt
    shard_windows: PositiveInt


class Sae(Section):
    """TopK sparse autoencoders. Both trainers minimise one loss; sae-lens's is the reference."""

    trainer: Literal["sparse", "sae_lens"]
    expansion: PositiveInt
    k: PositiveInt
    epochs: PositiveInt
    batch_tokens: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    auxiliary_coefficient: Annotated[float, Field(ge=0)]
    dead_after_steps: PositiveInt


class Seeds(Section):
    """SAE seeds `[init, data]`: those of the dense model, and those of every other condition."""

    dense: Annotated[list[Seed], Field(min_length=1)]
    compressed: Annotated[list[Seed], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Seeds:
        for key, seeds in (("dense", self.dense), ("compressed", self.compressed)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{key}: the same [init, data] pair stands twice")
        for seed in self.compressed:
            if seed not in self.dense:
                raise ValueError(f"compressed: {list(seed)} has no dense SAE of the same seeds; add it to dense")
        return self


class Perplexity(Section):
    """Windows over a running text, each led by <bos>; a token counts once, where it has the most context."""

    window: Annotated[int, Field(ge=3)]  # tokens, <bos> included
    stride: PositiveInt

    @model_validator(mode="after")
    def _no_gaps(self) -> Perplexity:
        if self.stride >= self.window:
            raise ValueError(f"stride: {self.stride} leaves gaps between windows of {self.window} tokens")
        return self


class Metrics(Section):
    """Thresholds and sizes of the measurements."""

    taus: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
    perplexity: Perplexity
    splice_windows: PositiveInt
    causal_features: Annotated[int, Field(ge=5)]  # of each dense SAE, the same number from each quintile
    causal_windows: PositiveInt  # the most in which a feature is ablated
    bootstrap_samples: PositiveInt
    seed: NonNegativeInt  # of the bootstrap, random dictionaries and drawn samples

    @model_validator(mode="after")
    def _taus(self) -> Metrics:
        if MAIN_TAU not in self.taus:
            raise ValueError(f"taus: {MAIN_TAU} must be among them, found {self.taus}")
        if len(set(self.taus)) < len(self.taus):
            raise ValueError(f"taus: one stands twice, found {self.taus}")
        return self


class Redundancy(Section):
    """An SAE with less to lose: what it changes of section `sae`."""

    expansion: PositiveInt | None = None
    k: PositiveInt | None = None


class Variants(Section):
    """The second study: which SAE explains a compressed model. Every model is read at every site."""

    models: Names
    sites: Names  # by their names in a model's `sites`; the first also sees `compressors` and `redundancy`
    condition: str  # on which every variant is measured, by every metric
    further_conditions: Distinct  # at every site, by the core metrics
    compressors: Distinct  # at the first site, by the core metrics
    levels: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]  # of the SAE's own sparsity
    group: Group  # what a weight of an SAE is compared within
    redundancy: dict[str, Redundancy]
    seeds: Annotated[list[Seed], Field(min_length=1)]  # of the dense model's SAEs; the first is the pretrained one's
    sae_windows: PositiveInt
    evaluation_windows: PositiveInt
    splice_windows: PositiveInt
    probe_windows: PositiveInt  # half to fit probes, half to test

    @model_validator(mode="after")
    def _sizes(self) -> Variants:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: the same [init, data] pair stands twice")
        for key in ("splice_windows", "probe_windows"):
            if getattr(self, key) > self.evaluation_windows:
                raise ValueError(f"{key}: {getattr(self, key)} asked, evaluation_windows has {self.evaluation_windows}")
        if self.group == "model":
            raise ValueError("group: an SAE's weights are compared within row, matrix or N:M, found model")
        return self

    def conditions(self, site: str) -> list[str]:
        """The compressed models that are looked at at a site."""
        named = [self.condition, *self.further_conditions, *(self.compressors if site == self.sites[0] else [])]
        return list(dict.fromkeys(named))


class Report(Section):
    """What the report's feature browser shows of each model of the first study."""

    conditions: Names  # beside the dense model; of study.conditions
    features: PositiveInt  # the most of a model's dense SAE; those with causal effects first


class Release(Section):
    """Which SAEs of the first study go to a remote."""

    conditions: Names  # of study.conditions


class Params(Section):
    """All of params.yaml."""

    study: Study
    device: Device  # auto: the GPU where there is one
    window: Annotated[int, Field(ge=3)]  # tokens a window, <bos> included
    corpus: Corpus
    models: dict[str, Model]
    conditions: dict[str, Condition]
    prune: Prune
    activations: Activations
    sae: Sae
    seeds: Seeds
    metrics: Metrics
    variants: Variants
    report: Report
    release: Release
    quick: dict[str, Any]  # overrides of `make quick`, by dotted key

    @model_validator(mode="after")
    def _grid_is_known(self) -> Params:
        variants = self.variants
        if "dense" not in self.study.conditions:
            raise ValueError("study.conditions: 'dense' is missing; every other condition is measured against it")
        for key, names, known in (
            ("study.bases", self.study.bases, self.models),
            ("study.models", self.study.models, self.study.bases),
            ("study.conditions", self.study.conditions, self.conditions),
            ("variants.models", variants.models, self.study.bases),
            ("report.conditions", self.report.conditions, self.conditions),
            ("release.conditions", self.release.conditions, self.conditions),
            ("variants.condition", [variants.condition], self.conditions),
            ("variants.further_conditions", variants.further_conditions, self.conditions),
            ("variants.compressors", variants.compressors, self.conditions),
        ):
            for name in names:
                if name not in known and name in self.models:
                    raise ValueError(f"{key}: {name!r} is used and not among study.bases; add it there")
                if name not in known:
                    raise ValueError(str(unknown(key, name, list(known))))
        for key, names in (("report", self.report.conditions), ("release", self.release.conditions)):
            for name in names:
                if name not in self.study.conditions:
                    raise ValueError(f"{key}.conditions: {name!r} is not among study.conditions; allowed: one that is")
        for key, models, sites in (
            ("study.site", self.study.models, [self.study.site]),
            ("variants.sites", variants.models, variants.sites),
        ):
            for model in models:
                for site in sites:
                    if site not in self.models[model].sites:
                        raise ValueError(str(unknown(f"{key} of {model}", site, list(self.models[model].sites))))
        if self.metrics.splice_windows > self.activations.evaluation_windows:
            raise ValueError(
                f"metrics.splice_windows: {self.metrics.splice_windows} asked, "
                f"activations.evaluation_windows has {self.activations.evaluation_windows}"
            )
        for name in self.compressed():
            recipe = self.recipe(name)
            if recipe.group == "model" and recipe.method == "sparsegpt":
                raise ValueError(f"conditions.{name}: method sparsegpt takes group row, matrix or N:M, found model")
            if recipe.group == "model" and recipe.method == "wanda" and recipe.sequential:
                raise ValueError(
                    f"conditions.{name}: group 'model' needs every block's scores at once; set sequential: false"
                )
        return self

    def compressed(self) -> list[str]:
        """Every condition that either study uses; each model is compressed by all of them."""
        return list(dict.fromkeys([*self.study.conditions, *self.variants.conditions(self.variants.sites[0])]))

    def model(self, name: str) -> Model:
        """A catalogue entry; InputError for an unknown name."""
        if name not in self.models:
            raise unknown("model", name, list(self.models))
        return self.models[name]

    def for_model(self, name: str) -> Params:
        """These settings as the model's budget has them; InputError for an unknown model, or one they do not fit."""
        spec = self.model(name)
        where = f"models.{name}.budget"
        if spec.budget:
            content = self.model_dump()
            for key, value in spec.budget.items():
                set_key(content, key, value, where)
        params = validate(content, where, Params) if spec.budget else self
        longest = spec.config.get("max_position_embeddings", spec.config.get("n_positions"))
        of_text = [params.metrics.perplexity.window] if spec.weights.hub and spec.weights.hub.text.perplexity else []
        for window in [params.window, *of_text]:
            if longest is not None and window > longest:
                raise InputError(f"window: {window} is longer than the {longest} positions of model {name}")
        return params

    def recipe(self, name: str) -> Recipe:
        """A condition with the defaults of section `prune` filled in; InputError for an unknown name."""
        if name not in self.conditions:
            raise unknown("condition", name, list(self.conditions))
        condition = self.conditions[name]
        group = condition.group or self.prune.group
        sparsity = condition.sparsity or 0.0
        if group not in GROUPS:
            kept, of = pattern(group)
            sparsity = 1 - kept / of
        return Recipe(
            condition.method,
            sparsity,
            group if METHOD_KEYS[condition.method] == PRUNING else "row",
            self.prune.sequential if condition.sequential is None else condition.sequential,
            condition.bits or 0,
            condition.quantization_group or self.prune.quantization_group,
            condition.rank or 0,
        )

    def sae_seeds(self, condition: str) -> list[Seed]:
        """The seeds of the SAEs trained on a condition."""
        return self.seeds.dense if condition == "dense" else self.seeds.compressed


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises InputError: one line with the file, the key, what was found and what is allowed.
    """
    params = read_yaml(path, Params)
    for name in params.study.bases:
        try:
            params.for_model(name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    return params
