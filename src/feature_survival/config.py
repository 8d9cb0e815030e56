"""The only reader of params.yaml: a frozen, fully checked description of the study.

Every section is a model of its own, so that a wrong key or value is refused before anything runs, in one
line that names the key, what was found and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

MAIN_TAU = 0.7  # the cosine at which a feature counts as found again; others are shown beside it


class InputError(Exception):
    """Something the user gave is wrong. The message is one line; the command line exits with code 2."""


def unknown(what: str, name: str, known: list[str]) -> InputError:
    """The error for a name outside a list, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"{what}: unknown name {name!r}; {hint}known: {', '.join(known)}")


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


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


class Condition(Section):
    """One compression of a model. `group` and `sequential`, where given, override section `prune`."""

    method: Literal["dense", "magnitude", "wanda"]
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    group: Literal["row", "matrix", "model"] | None = None
    sequential: bool | None = None

    @model_validator(mode="after")
    def _sparsity_fits_method(self) -> Condition:
        if self.method == "dense" and self.sparsity != 0:
            raise ValueError(f"method dense takes no sparsity, found {self.sparsity:g}")
        if self.method != "dense" and "sparsity" not in self.model_fields_set:
            raise ValueError(f"sparsity is missing; method {self.method} needs one in [0, 1)")
        return self


class Prune(Section):
    """Defaults of all conditions: comparison group, and calibration (windows through the model, in batches)."""

    group: Literal["row", "matrix", "model"]
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
    bootstrap_samples: PositiveInt
    seed: NonNegativeInt  # of the bootstrap and of random dictionaries

    @model_validator(mode="after")
    def _main_tau(self) -> Metrics:
        if MAIN_TAU not in self.taus:
            raise ValueError(f"taus: {MAIN_TAU} must be among them, found {self.taus}")
        return self


class Params(Section):
    """All of params.yaml."""

    study: Study
    window: Annotated[int, Field(ge=2)]  # tokens a window, <bos> included
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

    def pruning(self, name: str) -> Condition:
        """A condition with the defaults of section `prune` filled in; InputError for an unknown name."""
        if name not in self.conditions:
            raise unknown("condition", name, list(self.conditions))
        condition = self.conditions[name]
        group = condition.group or self.prune.group
        sequential = self.prune.sequential if condition.sequential is None else condition.sequential
        return condition.model_copy(update={"group": group, "sequential": sequential})

    def sae_seeds(self, condition: str) -> list[Seed]:
        """The seeds of the SAEs trained on a condition."""
        return self.seeds.dense if condition == "dense" else self.seeds.compressed


def load(path: Path) -> Params:
    """Read and check params.yaml.

    Raises InputError: one line with the file, the key, what was found and what is allowed.
    """
    from ruamel.yaml import YAML  # YAML 1.2, as DVC reads it: 3e-3 is a number, a doubled key an error
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from the repository's top") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}: line {line}: {(error.problem or 'not YAML').splitlines()[0]}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}; a mapping of sections is needed")
    return validate(raw, str(path))


def validate(raw: Any, where: str) -> Params:
    """Check the content of params.yaml; `where` leads the message."""
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    """The first problem of a validation, as `key: problem, found ...`, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        text = str(unknown(key, str(first["loc"][-1]), known)).replace("unknown name", "unknown key")
    elif first["type"] == "missing":
        text = f"{key}: this key is missing"
    elif first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        text = f"{key}: {message}" if key else message
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        text = f"{key}: {message}, found {first['input']!r}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at a place in params.yaml."""
    section: Any = Params
    for part in location:
        if hasattr(section, "model_fields"):
            section = section.model_fields[str(part)].annotation
        else:  # a catalogue, dict[str, Section]: any name, the same fields
            section = section.__args__[-1]
    return list(section.model_fields)
