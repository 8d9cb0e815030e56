"""The only reader of params.yaml: a frozen, fully checked description of the study.

Every section is a model of its own, so that a wrong key or value is refused before anything runs, in one
line that names the key, what was found and what is allowed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from feature_survival.schema import Section, read_yaml, unknown
from feature_survival.thresholds import MAIN_TAU


class Seed(NamedTuple):
    """One SAE's two seeds: `init` draws the starting weights, `data` the order of tokens."""

    init: int
    data: int

    @property
    def name(self) -> str:
        """Folder name of the SAE, e.g. `init0-data1`."""
        return f"init{self.init}-data{self.data}"


class Site(NamedTuple):
    """Where activations are read: a point inside decoder block `block` (0-based)."""

    point: str
    block: int

    def __str__(self) -> str:
        return f"{self.point}.{self.block}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """`resid_post.2` -> Site; raises ValueError with the allowed forms."""
        found = re.fullmatch(r"(resid_post|mlp_out|attn_out|attn_z)\.(\d+)", text)
        if not found:
            raise ValueError(
                f"site {text!r} is not one of resid_post.L, mlp_out.L, attn_out.L, attn_z.L with L a block number"
            )
        return cls(found[1], int(found[2]))


class Study(Section):
    """The grid: every model crossed with every condition; and which figures are drawn."""

    bases: Annotated[list[str], Field(min_length=1)]
    models: Annotated[list[str], Field(min_length=1)]
    conditions: Annotated[list[str], Field(min_length=1)]
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


class Training(Section):
    """How a miniature base model is trained (AdamW, linear warm-up, cosine decay to a tenth of the peak)."""

    tokens: PositiveInt
    batch_windows: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    weight_decay: Annotated[float, Field(ge=0)]
    seed: NonNegativeInt


class Model(Section):
    """One entry of the model catalogue."""

    architecture: str  # a transformers class, e.g. LlamaForCausalLM
    site: str
    vocabulary: Annotated[int, Field(ge=257)]
    config: dict[str, Any]  # passed to the class's transformers config
    training: Training

    @model_validator(mode="after")
    def _site_exists(self) -> Model:
        blocks = self.config.get("num_hidden_layers", self.config.get("n_layer"))
        site = Site.parse(self.site)
        if isinstance(blocks, int) and site.block >= blocks:
            raise ValueError(f"site {self.site!r} is beyond the last block; allowed: {site.point}.0 to .{blocks - 1}")
        return self

    @property
    def where(self) -> Site:
        """The parsed site."""
        return Site.parse(self.site)


Group = Literal["row", "matrix", "model"]  # what a weight is compared within


class Condition(Section):
    """One compression of a model. `group` and `sequential`, where given, override section `prune`."""

    method: Literal["dense", "magnitude", "wanda"]
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    group: Group | None = None
    sequential: bool | None = None

    @model_validator(mode="after")
    def _sparsity_fits_method(self) -> Condition:
        if self.method == "dense" and self.sparsity != 0:
            raise ValueError(f"method dense takes no sparsity, found {self.sparsity:g}")
        if self.method != "dense" and "sparsity" not in self.model_fields_set:
            raise ValueError(f"sparsity is missing; method {self.method} needs one in [0, 1)")
        return self


class Pruning(NamedTuple):
    """A condition with every default filled in."""

    method: str
    sparsity: float
    group: Group
    sequential: bool


class Prune(Section):
    """Defaults of all conditions: comparison group, and calibration (windows through the model, in batches)."""

    group: Group
    sequential: bool
    calibration_windows: PositiveInt
    batch_windows: PositiveInt


class Activations(Section):
    """What the cache stage stores for each cell."""

    sae_windows: PositiveInt
    evaluation_windows: PositiveInt
    batch_windows: PositiveInt
    shard_windows: PositiveInt


class Sae(Section):
    """TopK sparse autoencoders, trained by sae-lens."""

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


class Metrics(Section):
    """Thresholds and sizes of the measurements."""

    taus: Annotated[list[Annotated[float, Field(gt=0, lt=1)]], Field(min_length=1)]
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


class Params(Section):
    """All of params.yaml."""

    study: Study
    window: Annotated[int, Field(ge=3)]  # tokens a window, <bos> included
    corpus: Corpus
    models: dict[str, Model]
    conditions: dict[str, Condition]
    prune: Prune
    activations: Activations
    sae: Sae
    seeds: Seeds
    metrics: Metrics
    quick: dict[str, Any]  # overrides of `make quick`, by dotted key

    @model_validator(mode="after")
    def _grid_is_known(self) -> Params:
        for key, names, known in (
            ("study.models", self.study.models, self.models),
            ("study.conditions", self.study.conditions, self.conditions),
        ):
            for name in names:
                if name not in known:
                    raise ValueError(str(unknown(key, name, list(known))))
            if len(set(names)) < len(names):
                raise ValueError(f"{key}: a name stands twice")
        if "dense" not in self.study.conditions:
            raise ValueError("study.conditions: 'dense' is missing; every other condition is measured against it")
        if self.metrics.splice_windows > self.activations.evaluation_windows:
            raise ValueError(
                f"metrics.splice_windows: {self.metrics.splice_windows} asked, "
                f"activations.evaluation_windows has {self.activations.evaluation_windows}"
            )
        for name in self.study.models:
            config = self.models[name].config
            longest = config.get("max_position_embeddings", config.get("n_positions", self.window))
            if self.window > longest:
                raise ValueError(f"window: {self.window} is longer than the {longest} positions of model {name}")
        for name in self.study.conditions:
            condition = self.pruning(name)
            if condition.method == "wanda" and condition.group == "model" and condition.sequential:
                raise ValueError(
                    f"conditions.{name}: group 'model' needs every block's scores at once; set sequential: false"
                )
        return self

    def model(self, name: str) -> Model:
        """A catalogue entry; InputError for an unknown name."""
        if name not in self.models:
            raise unknown("model", name, list(self.models))
        return self.models[name]

    def pruning(self, name: str) -> Pruning:
        """A condition with the defaults of section `prune` filled in; InputError for an unknown name."""
        if name not in self.conditions:
            raise unknown("condition", name, list(self.conditions))
        condition = self.conditions[name]
        return Pruning(
            condition.method,
            condition.sparsity,
            condition.group or self.prune.group,
            self.prune.sequential if condition.sequential is None else condition.sequential,
        )

    def sae_seeds(self, condition: str) -> list[Seed]:
        """The seeds of the SAEs trained on a condition."""
        return self.seeds.dense if condition == "dense" else self.seeds.compressed


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises InputError: one line with the file, the key, what was found and what is allowed.
    """
    return read_yaml(path, Params)
