"""The catalogue of models in params.yaml: what each is, where its weights and documents come from, where it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from feature_survival.schema import Section, unknown


def _commit(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{40}", text):
        raise ValueError(f"a commit of 40 hexadecimal digits is needed, as a branch moves; found {text!r}")
    return text


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ValueError(f"{text!r} is no device; allowed: auto, cpu, cuda, cuda:N")
    return text


Commit = Annotated[str, AfterValidator(_commit)]
Device = Annotated[str, AfterValidator(_device)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
# Points by TransformerLens's names.
_HOOKS = {"hook_resid_post": "resid_post", "hook_mlp_out": "mlp_out", "hook_attn_out": "attn_out", "hook_z": "attn_z"}
BUDGETED = ("window", "prune", "activations", "sae", "metrics", "variants")  # what a model's budget may change


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


def site_named(hook: object) -> str | None:
    """The site that an SAE's configuration names, ours or as TransformerLens writes it; None where it names none.

    What goes into a block is what comes out of the one before it.
    """
    text = str(hook)
    found = re.fullmatch(r"blocks\.(\d+)\.(?:attn\.)?(\w+)", text)
    if found and found[2] == "hook_resid_pre" and int(found[1]) > 0:
        return f"resid_post.{int(found[1]) - 1}"
    if found:
        return f"{_HOOKS[found[2]]}.{found[1]}" if found[2] in _HOOKS else text
    try:
        return str(Site.parse(text))
    except ValueError:
        return None


class Training(Section):
    """How a miniature base model is trained (AdamW, linear warm-up, cosine decay to a tenth of the peak)."""

    tokens: PositiveInt
    batch_windows: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: NonNegativeInt
    weight_decay: Annotated[float, Field(ge=0)]
    seed: NonNegativeInt


class Text(Section):
    """A dataset of documents, as `datasets.load_dataset` finds it: on the hub, or a folder of files."""

    dataset: str
    name: str | None = None  # its configuration, where it has several
    split: str
    column: str
    revision: Commit | None = None  # None for a local folder only
    documents: PositiveInt | None = None  # the first so many; None takes all

    @model_validator(mode="after")
    def _pinned(self) -> Text:
        if self.revision is None and not Path(self.dataset).exists():
            raise ValueError(f"revision is missing; {self.dataset} is no folder or file here, and a hub's moves")
        return self


class Texts(Section):
    """A hub model's documents. Splits of one dataset follow one another, in this order: no document is in two."""

    calibration: Text
    evaluation: Text
    sae: Text
    perplexity: Text | None = None  # read as one running text, in windows that overlap


class PretrainedSae(Section):
    """An SAE of the dense model that others trained, by its names in sae-lens's list."""

    release: str
    sae_id: str


class Hub(Section):
    """A published model: its weights and tokenizer at one commit, its documents and SAEs."""

    repository: str
    revision: Commit
    text: Texts
    saes: dict[str, PretrainedSae] = Field(default_factory=dict)  # by the name of the site they read


class Weights(Section):
    """Where a model's weights come from: trained here on the embedded corpus, or a hub."""

    training: Training | None = None
    hub: Hub | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Weights:
        if (self.training is None) == (self.hub is None):
            raise ValueError(f"either training or hub is needed, found {'neither' if self.hub is None else 'both'}")
        return self


class Model(Section):
    """One entry of the model catalogue."""

    architecture: str  # a transformers class, e.g. LlamaForCausalLM
    vocabulary: Annotated[int, Field(ge=257)]
    config: dict[str, Any]  # passed to the class's transformers config
    weights: Weights
    dtype: Dtype  # in which it is run; auto: that of the checkpoint
    sites: Annotated[dict[str, str], Field(min_length=1)]  # where it may be read, by name, e.g. mlp_out: mlp_out.2
    budget: dict[str, Any]  # what it changes of the sections below the catalogues, by dotted key

    @model_validator(mode="after")
    def _sites_exist(self) -> Model:
        blocks = self.config.get("num_hidden_layers", self.config.get("n_layer"))
        for text in self.sites.values():
            site = Site.parse(text)
            if isinstance(blocks, int) and site.block >= blocks:
                raise ValueError(f"site {text!r} is beyond the last block; allowed: {site.point}.0 to .{blocks - 1}")
        for name in self.weights.hub.saes if self.weights.hub else ():
            if name not in self.sites:
                raise ValueError(str(unknown("weights.hub.saes", name, list(self.sites))))
        for key in self.budget:
            if key.partition(".")[0] not in BUDGETED:
                raise ValueError(f"budget: {key!r} is not of a section it may change; allowed: {', '.join(BUDGETED)}")
        return self

    def site(self, name: str) -> Site:
        """One of its sites; InputError for an unknown name."""
        if name not in self.sites:
            raise unknown("site", name, list(self.sites))
        return Site.parse(self.sites[name])
