"""Tokens a second of each stage, at the shapes of a catalogue model with random weights; nothing is downloaded.

    python benchmarks/gpu.py                                  # Gemma 2 2B; needs a GPU
    python benchmarks/gpu.py --model mini-llama3 --device cpu

One row a stage: tokens, the best of three repetitions after one to warm up, tokens a second, the device's peak memory.
The model runs in its entry's dtype, with its entry's budget for batches; the number of windows is an option.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from feature_survival.activations import Shards, measure_normalization, write_shards
from feature_survival.compression.calibrate import compress
from feature_survival.config import Params, Seed, load
from feature_survival.matching import mutual_cosine
from feature_survival.metrics.language import mean_cross_entropy, measure_splices
from feature_survival.metrics.transfer import measure_transfer
from feature_survival.models import build, compute_device, use_device
from feature_survival.recipes import Recipe
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError
from feature_survival.trainers import Job, train_saes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOP = Path(__file__).resolve().parent.parent
REPETITIONS = 3


class Bench(NamedTuple):
    """What the stages work on."""

    params: Params
    name: str
    model: PreTrainedModel
    tokens: Tensor  # int64 [windows, position]
    folder: Path


def random_model(params: Params, name: str) -> PreTrainedModel:
    """The entry's architecture and shapes, its weights drawn."""
    spec, before = params.model(name), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if spec.dtype == "auto" else getattr(torch, spec.dtype))
    try:
        with compute_device():
            return build(spec).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def stages(bench: Bench) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, tokens and work of each stage; each may read what those before it wrote."""
    params, spec = bench.params, bench.params.model(bench.name)
    site, batch = spec.site(params.study.site), params.activations.batch_windows
    folder, tokens = bench.folder, bench.tokens
    calibration = tokens[: params.prune.calibration_windows]
    on_host = params.prune.hidden_states == "host"
    for recipe in (Recipe("magnitude", 0.5), Recipe("wanda", 0.5)):
        work = lambda recipe=recipe: compress(bench.model, recipe, calibration, params.prune.batch_windows, on_host)  # noqa: E731
        yield f"prune, {recipe.method}", calibration.numel() if recipe.method == "wanda" else 0, work

    def cache() -> None:
        for file in folder.glob("*.safetensors"):
            file.unlink()
        write_shards(bench.model, site, tokens, batch, params.activations.shard_windows, folder, "sae")

    yield f"cache, {site}", tokens.numel(), cache
    shards = Shards(folder, "sae")
    normalization = measure_normalization(shards)
    seeds = iter(range(100))

    def train() -> None:
        train_saes([Job(params.sae, Seed(0, 0), folder / f"sae{next(seeds)}")], shards, normalization, {})

    yield f"sae, width {params.sae.expansion * shards.width}", len(shards), train
    sae = Dictionary.read(folder / "sae0", shards.width)
    yield (
        "metrics, transfer",
        2 * len(shards),
        lambda: measure_transfer(sae, shards.batches(4096), shards.batches(4096)),
    )
    yield "metrics, matching", 0, lambda: mutual_cosine(sae.W_dec, sae.W_dec.flip(0))
    yield "metrics, perplexity", tokens.numel(), lambda: mean_cross_entropy(bench.model, tokens, batch)
    spliced = {"sae": sae.reconstruct}
    yield (
        "metrics, model and one splice",
        2 * tokens.numel(),
        lambda: measure_splices(bench.model, site, spliced, tokens, batch),
    )


def timed(work: Callable[[], object]) -> float:
    """Best seconds of the repetitions; what the device was given is waited for."""
    seconds = []
    for _ in range(1 + REPETITIONS):
        start = time.perf_counter()
        work()
        if compute_device().type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-2-2b", help="an entry of the catalogue (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--windows", type=int, default=256, help="of the model's window (default: %(default)s)")
    options = parser.parse_args()
    try:
        use_device(options.device)
        params = load(TOP / "params.yaml").for_model(options.model)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    spec = params.model(options.model)
    on_gpu = compute_device().type == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    print(f"{date.today()}, {device}, torch {torch.__version__}; {options.model}: {spec.architecture}, random weights")
    tokens = torch.randint(1, spec.vocabulary, (options.windows, params.window))
    print(f"{'stage':32} {'tokens':>9} {'seconds':>9} {'tokens/s':>12} {'peak memory':>12}")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(params, options.model, random_model(params, options.model), tokens, Path(folder))
        for name, count, work in stages(bench):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = timed(work)
            rate = f"{count / seconds:,.0f}" if count else "-"
            peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if on_gpu else "-"
            print(f"{name:32} {count:9,} {seconds:9.3f} {rate:>12} {peak:>12}", flush=True)


if __name__ == "__main__":
    main()
