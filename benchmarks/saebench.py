"""SAEBench (Karvonen et al., arXiv 2503.09532) on the SAEs of a dense paper-scale model: `make saebench MODEL=name`.

sae-bench's pins clash with this package's: it has an environment of its own, and nothing of `feature_survival` is
imported here. `--check MODEL` only says whether there is something to run; it needs no sae-bench.

Core is measured on artifacts/MODEL/base and the corpus's evaluation split; absorption and sparse probing on the model
TransformerLens loads by that name and on their own data, or skipped, with the reason. -> artifacts/saebench/MODEL.json
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

TOP = Path(__file__).resolve().parent.parent
BATCHES, PROMPTS = 40, 16  # 82k tokens in windows of 128
METRICS = "kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics"


def stop(message: str) -> NoReturn:
    """End with one line and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def saes_of(name: str) -> list[Path]:
    """The folders of a dense model's SAEs; ends the program where there is none, or the model is not SAEBench's."""
    import yaml

    known = list(yaml.safe_load((TOP / "params.yaml").read_text())["models"])
    if name not in known:
        stop(f"model {name!r} is not in params.yaml; known: {', '.join(known)}")
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        get_official_model_name(name)
    except ValueError:
        stop(f"TransformerLens knows no model {name!r}: SAEBench serves models of paper scale, no miniatures")
    folder = TOP / "artifacts" / name
    found = [*folder.glob("dense/sae/*/cfg.json"), *folder.glob("variants/*/dense/standard/*/cfg.json")]
    return sorted(path.parent for path in found) or stop(f"{folder} has no SAE of the dense model; run dvc repro")


def load_sae(folder: Path, name: str, device: str) -> Any:
    """The SAE of a folder, its site by TransformerLens's name."""
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder, device=device)
    metadata = sae.cfg.metadata
    point, _, block = metadata.hook_name.partition(".")
    metadata.hook_name = f"blocks.{block}." + ("attn.hook_z" if point == "attn_z" else f"hook_{point}")
    metadata.hook_layer, metadata.model_name, metadata.prepend_bos = int(block), name, True
    return load_and_format_sae(name, sae, device)[1]


def core(model: Any, sae: Any, text: Path) -> dict[str, float]:
    """SAEBench's core metrics by name; special tokens keep their own activations, as in this package's splices."""
    from datasets import load_dataset
    from sae_bench.evals.core.main import CoreEvalConfig, run_evals
    from sae_lens.training.activations_store import ActivationsStore

    texts = load_dataset("json", data_files=str(text), split="train")
    store = ActivationsStore.from_sae(model, sae, texts, streaming=False, device=str(sae.device))
    chosen: dict[str, Any] = {f"compute_{metric}": True for metric in METRICS}
    chosen |= {f"n_eval_{part}_batches": BATCHES for part in ("reconstruction", "sparsity_variance")}
    config = CoreEvalConfig(batch_size_prompts=PROMPTS, exclude_special_tokens_from_reconstruction=True, **chosen)
    special = {getattr(model.tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")} - {None}
    groups, _ = run_evals(sae, store, model, config, ignore_tokens=special)
    return {key: value for group in groups.values() for key, value in group.items()}


def further(name: str, sae: Any, device: str) -> dict[str, Any]:
    """Absorption and sparse probing, or why they could not be had."""
    from sae_bench.evals.absorption import main as absorption
    from sae_bench.evals.sparse_probing import main as probing

    found: dict[str, Any] = {}
    for module, settings in (absorption, absorption.AbsorptionEvalConfig), (probing, probing.SparseProbingEvalConfig):
        key = module.__name__.split(".")[-2]
        try:
            config = settings(model_name=name, llm_batch_size=PROMPTS, llm_dtype="float32")
            (result,) = module.run_eval(config, [(name, sae)], device, key, force_rerun=True).values()
            found[key] = result["eval_result_metrics"]
        except Exception as error:  # whatever stands between it and its data
            found[key] = {"skipped": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found


def measure(name: str, folders: list[Path]) -> dict[str, Any]:
    """For each SAE, by its folder, the metrics of each eval."""
    import torch
    from transformer_lens import HookedTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, device = TOP / "artifacts" / name / "base", "cuda" if torch.cuda.is_available() else "cpu"
    pinned = json.loads((base / "hub.json").read_text())  # the commit whose weights lie in the hub's cache
    published: dict[str, Any] = {"revision": pinned["revision"]}
    weights = AutoModelForCausalLM.from_pretrained(pinned["repository"], dtype=torch.float32, **published)
    tokenizer = AutoTokenizer.from_pretrained(pinned["repository"], **published)
    model = HookedTransformer.from_pretrained_no_processing(name, hf_model=weights, tokenizer=tokenizer, device=device)
    saes = {str(folder.relative_to(TOP)): load_sae(folder, name, device) for folder in folders}
    return {
        folder: {"core": core(model, sae, base / "text" / "evaluation.jsonl"), **further(name, sae, device)}
        for folder, sae in saes.items()
    }


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if argument != "--check"]
    if len(names) != 1:
        stop("one model is needed: make saebench MODEL=name")
    folders = saes_of(names[0])
    if "--check" not in sys.argv:
        out = TOP / "artifacts" / "saebench"
        (out / "work").mkdir(parents=True, exist_ok=True)
        with contextlib.chdir(out / "work"):  # SAEBench leaves files of its own where it runs
            found = {"sae_bench": version("sae-bench"), "saes": measure(names[0], folders)}
        (out / f"{names[0]}.json").write_text(json.dumps(found, indent=2) + "\n")
