"""Two checkpoints that must be one architecture: found, compared by their files' headers, loaded, dequantized."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from feature_survival.artifacts import read_json
from feature_survival.catalogue import Dtype
from feature_survival.hub import fetch_model, shard_names
from feature_survival.models import (
    COMMIT,
    architecture_of,
    class_named,
    compute_device,
    is_out_of_memory,
    load,
    silent,
)
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)")
Shape = tuple[int, ...]


def locate(option: str, name: str) -> Path:
    """The folder of a checkpoint that is given as a folder, or as `repository@revision` of a hub."""
    folder = Path(name)
    if (folder / COMMIT).is_file():
        return fetch_model(**read_json(folder / COMMIT))
    if (folder / "config.json").is_file():
        return folder
    found = _HUB_NAME.fullmatch(name)
    if found and not folder.exists():
        return fetch_model(found[1], found[2])
    problem = "holds no config.json" if folder.is_dir() else "no such folder"
    raise InputError(f"--{option}: {name}: {problem}; allowed: a folder in hub layout, or repository@revision")


def shapes(folder: Path) -> dict[str, Shape]:
    """Shape of every tensor of a checkpoint, from its files' headers; InputError for a file missing or broken."""
    found: dict[str, Shape] = {}
    for name in shard_names(folder):
        try:
            with safe_open(folder / name, framework="pt") as file:
                found |= {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.offset_keys()}
        except FileNotFoundError:
            raise InputError(f"{folder / name}: no such file; allowed: a checkpoint in safetensors") from None
        except SafetensorError as error:
            raise InputError(f"{folder / name}: not a whole safetensors file ({error}); copy it again") from None
    return found


def outline(folder: Path) -> PreTrainedModel:
    """A checkpoint's model without its weights (all on the meta device)."""
    architecture = architecture_of(folder)
    kind = class_named(architecture)
    try:
        config = kind.config_class.from_pretrained(folder)
        with torch.device("meta"):
            return kind(config)
    except Exception as error:  # every family validates its configuration in its own way
        raise InputError(f"{folder / 'config.json'}: not a configuration of {architecture} ({_line(error)})") from None


def check_alike(base: Path, compressed: Path, model: PreTrainedModel) -> None:
    """InputError unless the compressed checkpoint has the base's architecture, tensors and shapes.

    model: the base's outline. Nothing but headers is read. A tensor that is tied to another needs to be there once;
    tensors of a quantized checkpoint are packed, and are compared when they are loaded.
    """
    wanted, found = architecture_of(base), architecture_of(compressed)
    if wanted != found:
        raise InputError(f"--compressed: {compressed} is a {found}; allowed: the base's architecture, {wanted}")
    if quantization(compressed) is not None:
        return
    aliases: dict[str, list[str]] = {}
    for target, source in model.all_tied_weights_keys.items():
        aliases.setdefault(source, []).append(target)
    before, after = shapes(base), shapes(compressed)
    for name, _ in model.named_parameters():  # a tied tensor stands here once
        prefix = model.base_model_prefix
        spellings = [spelling for alias in (name, *aliases.get(name, ())) for spelling in _spellings(alias, prefix)]
        old, new = (next((of[s] for s in spellings if s in of), None) for of in (before, after))
        if new is None and any(f"{spelling}_orig" in after for spelling in spellings):
            raise InputError(
                f"--compressed: {compressed} holds {name!r} as an original and a mask; make the pruning permanent "
                "(torch.nn.utils.prune.remove) and save it again"
            )
        if new is None and old is not None:
            raise InputError(f"--compressed: {compressed} lacks tensor {name!r}, which the base has as {list(old)}")
        if old is not None and new is not None and old != new:
            raise InputError(f"--compressed: tensor {name!r} of {compressed} is {list(new)}, the base's is {list(old)}")


def _spellings(name: str, prefix: str) -> tuple[str, str]:
    """A tensor's name, and the same without the model's prefix, as checkpoints of the bare model have it."""
    return name, name.removeprefix(f"{prefix}.")


def quantization(folder: Path) -> dict[str, Any] | None:
    """How a checkpoint is quantized, as its configuration says; None where it is not."""
    return read_json(folder / "config.json").get("quantization_config")


def load_dense(folder: Path, dtype: Dtype) -> PreTrainedModel:
    """A checkpoint as a model with dense weights on the compute device, dequantized where it has to be.

    dtype: that of the base model, by its name in torch.
    """
    described = quantization(folder)
    return load(folder, dtype) if described is None else _dequantized(folder, dtype, described)


def _dequantized(folder: Path, dtype: Dtype, described: dict[str, Any]) -> PreTrainedModel:
    """A quantized checkpoint by way of transformers; InputError that names the method where it cannot."""
    from transformers.quantizers.auto import AutoQuantizationConfig

    method = described.get("quant_method", "no method named")
    try:
        with silent():
            asked = AutoQuantizationConfig.from_dict(dict(described))
            on_loading = hasattr(asked, "dequantize")
            if on_loading:
                asked.dequantize = True
            model, info = class_named(architecture_of(folder)).from_pretrained(
                folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True,
                **({"quantization_config": asked} if on_loading else {}),
            )  # fmt: skip
            if not on_loading:
                model = model.dequantize()
        if info["missing_keys"]:
            raise ValueError(f"{sorted(info['missing_keys'])[0]!r} is missing")
        if not all(parameter.is_floating_point() for parameter in model.parameters()):
            raise ValueError("packed weights remain")
    except Exception as error:  # each quantizer raises its own
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"--compressed: {folder} is quantized ({method}), which cannot be undone here ({_line(error)}); "
            "save a dequantized checkpoint and audit that"
        ) from None
    # What dequantizing leaves may be of another type than asked.
    return model.eval().requires_grad_(False).to(compute_device(), getattr(torch, dtype))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
