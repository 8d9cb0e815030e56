"""Models are transformers' own classes; one adapter a family says where its blocks and sites are.

Adding a family is one line in `ADAPTERS` and nothing anywhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from feature_survival.artifacts import read_json
from feature_survival.catalogue import Dtype, Model, Site
from feature_survival.hub import fetch_model
from feature_survival.schema import InputError, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapter(NamedTuple):
    """Dotted module paths of one family. `blocks` starts at the model, the others at a block."""

    blocks: str
    attn_out: str  # the module whose output is added to the residual stream after attention
    mlp_out: str  # likewise after the MLP
    attn_projection: str  # output projection of attention; its input is attn_z


_LLAMA = Adapter("model.layers", "self_attn", "mlp", "self_attn.o_proj")
_GEMMA = Adapter("model.layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj")

ADAPTERS: dict[str, Adapter] = {
    "LlamaForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": _GEMMA,
    "GPT2LMHeadModel": Adapter("transformer.h", "attn", "mlp", "attn.c_proj"),
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "GPTNeoXForCausalLM": Adapter("gpt_neox.layers", "attention", "mlp", "attention.dense"),
    "OPTForCausalLM": Adapter("model.decoder.layers", "self_attn", "fc2", "self_attn.out_proj"),
}


COMMIT = "hub.json"  # in a base folder: the repository and revision that have its weights


_asked = "auto"


def use_device(name: str) -> None:
    """Choose where everything is computed from now on: auto, cpu, cuda, cuda:1. InputError for one that is absent."""
    global _asked
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            found = ", ".join(f"cuda:{number}" for number in range(count)) or "no CUDA device"
            raise InputError(
                f"device: {name!r} asked, this machine has {found}; allowed: auto, cpu" + ", cuda" * (count > 0)
            )
    _asked = name


def compute_device() -> torch.device:
    """The device chosen; by itself the GPU where there is one, else the CPU."""
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if _asked == "auto" else _asked)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    said = str(error).lower()
    texts = (
        "can't allocate memory",
        "cannot allocate memory",
        "cuda error: out of memory",
        "cublas_status_alloc_failed",
    )
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in said for text in texts)


def adapter_for(architecture: str) -> Adapter:
    """The adapter of a transformers class; InputError names the class and the file to extend."""
    if architecture not in ADAPTERS:
        raise InputError(
            f"architecture {architecture!r} has no adapter; add a line to ADAPTERS in "
            f"src/feature_survival/models.py; known: {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[architecture]


def class_named(architecture: str) -> Any:
    """A class of transformers that has an adapter; its own progress bars stay off."""
    adapter_for(architecture)
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    return getattr(transformers, architecture)


def build(model: Model) -> PreTrainedModel:
    """A randomly initialised model of a catalogue entry, float32 (seed torch first)."""
    architecture = class_named(model.architecture)
    known = ["attn_implementation", *(field.name for field in dataclasses.fields(architecture.config_class))]
    for key in model.config:
        if key not in known:
            raise unknown(f"config of {model.architecture}", key, known)
    # Token 0 is <bos>; the tokenizer has no other special token.
    config = architecture.config_class(
        vocab_size=model.vocabulary, bos_token_id=0, eos_token_id=None, pad_token_id=None, **model.config
    )
    return architecture(config)


def architecture_of(folder: Path) -> str:
    """What a checkpoint's configuration says its class is."""
    config = read_json(folder / "config.json")
    named = config.get("architectures") if isinstance(config, dict) else None
    return str(named[0]) if isinstance(named, list) and named else "(none named)"


@contextmanager
def silent() -> Iterator[None]:
    """Within the block transformers reports nothing; of missing tensors, say, which is ours to do in one line."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load(folder: Path, dtype: Dtype) -> PreTrainedModel:
    """A saved checkpoint as a model in evaluation mode on the compute device; dtype `auto` is the checkpoint's own.

    A base folder of a hub model names a commit; its weights come from the hub's cache, or the hub. InputError where
    files are missing, truncated, foreign, or the architecture has no adapter.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if (folder / COMMIT).exists():
        folder = fetch_model(**read_json(folder / COMMIT))
    architecture = architecture_of(folder)
    model_class = class_named(architecture)
    try:
        with silent():
            model, info = model_class.from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except (OSError, SafetensorError, RuntimeError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        broken, again = _broken_shard(folder), ""
        if broken and broken.is_symlink():  # into the hub's cache
            broken, again = broken.resolve(), "; delete this file and run it again: it is fetched anew"
        said = str(error).splitlines()[0]
        raise InputError(f"{broken or folder}: not a loadable checkpoint ({said}){again}") from None
    absent = sorted(info["missing_keys"])
    if absent:
        raise InputError(f"{folder}: checkpoint lacks {len(absent)} tensors of {architecture}, first {absent[0]!r}")
    return model.eval().requires_grad_(False).to(compute_device())


def _broken_shard(folder: Path) -> Path | None:
    """The first file of weights that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (OSError, SafetensorError):
            return file
    return None


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, in order."""
    found = model.get_submodule(adapter_for(type(model).__name__).blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def prunable(block: nn.Module) -> dict[str, Tensor]:
    """Weights of every linear map inside a decoder block as [out, in] views, by module path.

    GPT-2's `Conv1D` stores its weight transposed; the view turns it round, so writing to it writes the model.
    """
    from transformers.pytorch_utils import Conv1D

    found = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = module.weight.data
        elif isinstance(module, Conv1D):
            found[name] = module.weight.data.T
    return found


def prunable_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """`prunable` over all blocks, named `<block number>.<module path>`; never embeddings, head, norms, biases."""
    return {
        f"{number}.{name}": weight
        for number, block in enumerate(blocks(model))
        for name, weight in prunable(block).items()
    }


def site_width(model: PreTrainedModel, site: Site) -> int:
    """Width of the activations at a site; InputError where the model has no such block."""
    block = block_at(model, site)
    if site.point == "attn_z":
        return prunable(block)[adapter_for(type(model).__name__).attn_projection].shape[1]
    return int(model.config.hidden_size)


def block_at(model: PreTrainedModel, site: Site) -> nn.Module:
    """The block a site is in; InputError where the model has no such block."""
    stack = blocks(model)
    if site.block >= len(stack):
        raise InputError(f"site {site} is beyond the last block; allowed: {site.point}.0 to .{len(stack) - 1}")
    return stack[site.block]
