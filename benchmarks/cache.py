"""Stage `cache` beside sae-lens's CacheActivationsRunner: a middle block of a 1.3M-parameter model, the same tokens.

The peer's two kinds of model are both there: transformers' own class and, for GPT-2, TransformerLens's; it stops either
behind the block. It is set up as fast as it goes: half precision, no shuffling, tokens in memory, the same batches.
Loading is timed for nobody. The bound is transformers' bare forward pass, ended behind the block, its output thrown
away: what a peer takes beyond it is all that can be gained.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from race import Case, Rival, Seconds
from shapes import BLOCKS, FAMILIES, HEADS, SITE, VOCABULARY, WIDTH, WINDOW, random_tokens, untrained
from torch import Tensor

from feature_survival.activations import Shards, write_shards
from feature_survival.forward import ForwardStopped
from feature_survival.models import blocks, load

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

WINDOWS, BATCH, SHARD = 512, 16, 512
BLOCK = SITE.block


def save(family: str, folder: Path) -> PreTrainedModel:
    """An untrained model, saved with a tokenizer, as it is read again."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    untrained(family).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0").save_pretrained(folder)
    return load(folder, "float32")


def transformer_lens(model: PreTrainedModel) -> Any:
    """A GPT-2 as TransformerLens's HookedTransformer, its weights unprocessed."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    cfg = HookedTransformerConfig(
        n_layers=BLOCKS,
        d_model=WIDTH,
        n_ctx=WINDOW,
        d_head=WIDTH // HEADS,
        n_heads=HEADS,
        d_mlp=4 * WIDTH,
        d_vocab=VOCABULARY,
        act_fn="gelu_new",
        normalization_type="LN",
        device="cpu",
    )
    hooked = HookedTransformer(cfg)
    hooked.load_state_dict(convert_gpt2_weights(model, cfg), strict=False)
    return hooked.eval()


def sae_lens_runner(base: Path, hook: str, dataset: Dataset, out: Path, model: Any = None) -> Callable[[], Any]:
    """What runs the peer: every time anew, seconds of its `run` alone; `model` in place of the one it has loaded."""
    from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
    from sae_lens.cache_activations_runner import _mk_activations_store

    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    cfg = CacheActivationsRunnerConfig(
        dataset_path="tokens",
        model_name=str(base),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=BATCH,
        hook_name=hook,
        d_in=WIDTH,
        training_tokens=WINDOWS * WINDOW,
        context_size=WINDOW,
        new_cached_activations_path=str(out),
        shuffle=False,
        dtype="float16",
        device="cpu",
        buffer_size_gb=SHARD * WINDOW * WIDTH * 2 / 1e9,
        streaming=False,
    )

    def run() -> Seconds:
        shutil.rmtree(out, ignore_errors=True)
        warnings.simplefilter("ignore")  # it counts windows as tokens
        runner = CacheActivationsRunner(cfg, override_dataset=dataset)
        if model is not None:
            runner.model = model
            runner.activations_store = _mk_activations_store(model, cfg, override_dataset=dataset)
        started = time.perf_counter()
        runner.run()
        return Seconds(time.perf_counter() - started)

    return run


def bare(model: PreTrainedModel, tokens: Tensor) -> Callable[[], None]:
    """transformers' forward pass, ended behind the block."""

    def stop(*_: object) -> None:
        raise ForwardStopped

    @torch.no_grad()
    def run() -> None:
        handle = blocks(model)[BLOCK].register_forward_hook(stop)
        for chunk in tokens.split(BATCH):
            with suppress(ForwardStopped):
                model(chunk, use_cache=False)
        handle.remove()

    return run


def case(family: str, folder: Path) -> Case:
    """One family's."""
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    model = save(family, folder / "base")
    tokens = random_tokens(WINDOWS)
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    shards = folder / "shards"

    def ours() -> None:
        shutil.rmtree(shards, ignore_errors=True)
        shards.mkdir()
        write_shards(model, SITE, tokens, BATCH, SHARD, shards, "sae")

    hook = {"llama": f"model.layers.{BLOCK}", "gpt2": f"transformer.h.{BLOCK}"}[family]
    places = {hook: folder / "peer"}
    run = sae_lens_runner(folder / "base", hook, dataset, folder / "peer")
    peers = [Rival("sae-lens's runner, transformers' model", run, 3)]
    if family == "gpt2":
        point, hooked = f"blocks.{BLOCK}.hook_resid_post", transformer_lens(model)
        places[point] = folder / "hooked"
        run = sae_lens_runner(folder / "base", point, dataset, places[point], hooked)
        peers.append(Rival("sae-lens's runner, TransformerLens's model", run, 3))

    def same(*_: object) -> str:
        mine, furthest = torch.cat(list(Shards(shards, "sae").batches(65536))), 0.0
        for point, place in places.items():
            theirs = load_from_disk(str(place)).with_format("torch")[:][point][:, 1:].flatten(0, 1).float()
            difference = (mine - theirs).abs()
            assert bool((difference <= 2e-3 * theirs.abs() + 1e-4).all()), f"{point}: differs by {difference.max():.1e}"
            furthest = max(furthest, float(difference.max() / theirs.abs().max()))
        return f"activations, {furthest:.0e} of the largest (float16)"

    return Case(
        "cache",
        f"{type(model).__name__}, 1.3M parameters, {SITE} of {BLOCKS} blocks, {WINDOWS} windows of {WINDOW}",
        ours,
        same,
        tuple(peers),
        Rival("bare forward pass stopped at the site", bare(model, tokens), 1.3),
        tokens.numel(),
    )


def cases(full: bool = False) -> Iterator[Case]:
    """A Llama and a GPT-2."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            yield case(family, Path(folder))
