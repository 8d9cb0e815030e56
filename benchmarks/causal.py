"""How much faster `metrics.causal` is than a full forward pass per feature; first, that both say the same.

    python benchmarks/causal.py
    python benchmarks/causal.py --model CHECKPOINT_FOLDER --sae SAE_FOLDER --site resid_post.2

The peers hook a full pass per feature and ablation, over the windows in which the feature fires or over all windows;
like `measure_effects` they make the model's own predictions once and compare only tokens on which the feature fires.
One line a peer: medians of alternating repetitions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feature_survival.catalogue import Site
from feature_survival.metrics.causal import measure_effects
from feature_survival.models import at_site, compute_device, load, read_site
from feature_survival.sae import Dictionary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOW, FEATURES, K = 128, 1024, 16
TOLERANCE = 1e-5  # nats


def random_model() -> PreTrainedModel:
    """An untrained Llama of the size of mini-llama3, its weights large enough for features to matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False).to(compute_device())


def random_dictionary(activations: Tensor) -> Dictionary:
    """An untrained SAE of [n, width] activations: random unit directions about their mean."""
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, activations.shape[1]), dim=1).to(activations.device)
    mean = activations.mean(0)
    return Dictionary(decoder.T.contiguous(), -decoder @ mean, decoder, mean, K)


@torch.no_grad()
def plain_effects(
    model: PreTrainedModel,
    site: Site,
    sae: Dictionary,
    features: Tensor,
    means: Tensor,
    tokens: Tensor,
    batch: int,
    everywhere: bool,
) -> Tensor:
    """CE change and KL by zero and mean ablation, float64 [features, 4], from full forward passes."""
    before, codes = [], []
    for chunk in tokens.split(batch):
        with at_site(model, site, lambda x: codes.append(codes_of(sae, features, x))):
            before.append(model(chunk, use_cache=False).logits[:, :-1].log_softmax(-1))
    predictions, activations, means = torch.cat(before), torch.cat(codes), means.to(tokens.device)
    rows = []
    for number, feature in enumerate(features):
        fires = activations[:, :-1, number] > 0
        numbers, count = torch.zeros(4, dtype=torch.float64), int(fires.sum())
        chosen = torch.arange(len(tokens)) if everywhere else fires.any(1).nonzero()[:, 0].cpu()
        for windows in chosen.to(tokens.device).split(batch):
            here = fires[windows]
            target, expected = tokens[windows, 1:][here][:, None], predictions[windows][here]
            for which, level in enumerate((0.0, means[number])):
                change = (level - activations[windows, :, number, None]) * sae.W_dec[feature]
                change[:, 0] = 0  # the first position keeps its own activations
                with at_site(model, site, lambda x, change=change: x + change):
                    found = model(tokens[windows], use_cache=False).logits[:, :-1][here].log_softmax(-1)
                numbers[2 * which] += (expected - found).gather(-1, target).double().sum().cpu()
                numbers[2 * which + 1] += (expected.exp() * (expected - found)).double().sum().cpu()
        rows.append(numbers / count)
    return torch.stack(rows)


def codes_of(sae: Dictionary, features: Tensor, x: Tensor) -> Tensor:
    """The features' activations [windows, position, features]; the first position activates none."""
    values, active = sae.encode(x.flatten(0, 1))
    codes = values.new_zeros(len(values), len(sae.b_enc)).scatter_(1, active, values)[:, features]
    codes = codes.view(*x.shape[:2], -1)
    codes[:, 0] = 0
    return codes


def seconds(run: Callable[[], Tensor]) -> float:
    """One run."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=40, help="how many are ablated")
    parser.add_argument("--windows", type=int, default=64, help=f"windows of {WINDOW} random tokens")
    parser.add_argument("--batch", type=int, default=32, help="windows a forward pass")
    parser.add_argument("--site", type=Site.parse, default=Site("resid_post", 2))
    parser.add_argument("--model", type=Path, help="folder of a saved checkpoint; default: an untrained one")
    parser.add_argument("--sae", type=Path, help="folder of a saved SAE; default: an untrained one")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = random_model() if options.model is None else load(options.model, "float32")
    tokens = torch.randint(1, model.config.vocab_size, (options.windows, WINDOW)).to(model.device)
    tokens[:, 0] = 0
    read = read_site(model, options.site, tokens)
    sae = random_dictionary(read[:, 1:].flatten(0, 1)) if options.sae is None else Dictionary.read(options.sae)
    codes = codes_of(sae, torch.arange(len(sae.b_enc)), read).cpu()
    fires = codes[:, :-1] > 0  # the last position has no next token
    firing = fires.any(1).any(0).nonzero()[:, 0]
    features = firing[torch.randperm(len(firing))[: options.features]]
    means = codes[:, 1:].mean((0, 1))[features]
    fired, contexts = (part[features].double().mean() for part in (fires.sum((0, 1)), fires.any(1).sum(0)))

    def ours() -> Tensor:
        found = measure_effects(model, options.site, sae, features, means, tokens, options.windows, options.batch)
        return torch.stack([found.cross_entropy, found.kl], dim=2).flatten(1)

    print(
        f"{type(model).__name__}, {options.site}, {len(features)} features firing on "
        f"{fired:.0f} tokens in {contexts:.0f} of {len(tokens)} windows on average; zero and mean ablation"
    )
    for name, everywhere in (("a full pass over the same windows", False), ("a full pass over all windows", True)):

        def peer(everywhere: bool = everywhere) -> Tensor:
            return plain_effects(model, options.site, sae, features, means, tokens, options.batch, everywhere)

        found, expected = ours(), peer()
        furthest = (found - expected).abs().max().item()
        assert furthest < TOLERANCE, f"{name}: differs by {furthest:.1e} nats"
        times = [(seconds(ours), seconds(peer)) for _ in range(options.repetitions)]
        mine, plain = (median(column) for column in zip(*times, strict=True))
        print(
            f"{name}: {len(features)} features, {len(tokens)} windows: {mine:.2f} s against {plain:.2f} s, "
            f"{plain / mine:.1f} times faster; largest difference {furthest:.1e} of effects up to "
            f"{expected.abs().max():.2f} nats"
        )


if __name__ == "__main__":
    main()
