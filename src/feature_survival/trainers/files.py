"""A trained SAE as sae-lens's files."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from feature_survival.activations import Normalization
from feature_survival.artifacts import write_json
from feature_survival.catalogue import Site
from feature_survival.config import Params, Sae, Seed


def write_sae(
    folder: Path,
    cfg: Sae,
    seed: Seed,
    weights: dict[str, Tensor],
    cosine: Tensor,
    normalization: Normalization,
    metadata: dict[str, object],
) -> None:
    """Make a folder with `cfg.json`, `sae_weights.safetensors` and `movement.safetensors`.

    weights: on normalised activations, decoder rows of unit norm; the normalisation is folded into them, exactly, so
    that the stored SAE takes the model's raw activations. cosine: float32 [d_sae], of each decoder row to the one it
    started from.
    """
    state = fold_normalization({name: weight.cpu() for name, weight in weights.items()}, normalization)
    folder.mkdir(parents=True)
    # Matrices in half precision, biases (which hold the model's mean) in full; sae-lens loads both as float32.
    half = {name: (tensor.half() if tensor.ndim == 2 else tensor).contiguous() for name, tensor in state.items()}
    save_file(half, folder / "sae_weights.safetensors")
    save_file({"cosine": cosine.cpu()}, folder / "movement.safetensors")
    write_json(folder / "cfg.json", configuration(cfg, seed, len(state["b_dec"]), metadata))


def origin(params: Params, model: str, condition: str, site: Site) -> dict[str, object]:
    """The activations that an SAE of the studies is trained on, as its metadata names them."""
    return {
        "model_name": model,
        "architecture_name": params.model(model).architecture,
        "hook_name": str(site),
        "condition": condition,
        "context_size": params.window,
    }


def configuration(cfg: Sae, seed: Seed, width: int, metadata: dict[str, object]) -> dict[str, object]:
    """What sae-lens reads of an SAE in `cfg.json`; written without importing it (seconds of start-up)."""
    return {
        "architecture": "topk",
        "k": cfg.k,
        "d_in": width,
        "d_sae": cfg.expansion * width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "rescale_acts_by_decoder_norm": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            **metadata,
            "init_seed": seed.init,
            "data_seed": seed.data,
            "trainer": cfg.trainer,
            "sae_lens_version": importlib.metadata.version("sae-lens"),
        },
    }


def fold_normalization(state: dict[str, Tensor], normalization: Normalization) -> dict[str, Tensor]:
    """Weights that act on raw x exactly as `state` acts on (x - mean) / scale, activations scaled by `scale`.

    With x = scale * z + mean: TopK picks the same features (it is invariant to a positive scale) and decoder
    rows are unchanged.
    """
    mean, scale = normalization
    return {
        "W_enc": state["W_enc"],
        "b_enc": scale * state["b_enc"] - mean @ state["W_enc"],
        "W_dec": state["W_dec"],
        "b_dec": scale * state["b_dec"] + mean,
    }
