"""Training of SAEs beside sae-lens's trainer and a plain dense loop: the same start, batches, schedule; per SAE-token.

Activations are the dense mini-llama3's where `artifacts/` has them, else planted: sparse sums of 1,024 directions, some
frequent, most rare, and noise. Equal means: FVU on rows that nobody was trained on within 2%, files of the same names,
shapes, types and keys, which sae-lens loads. The bound is gathering the batches, encoding them and top-k.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from race import Case, Rival
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feature_survival.activations import Normalization, Shards, measure_normalization
from feature_survival.artifacts import read_json
from feature_survival.config import Sae, Seed, load
from feature_survival.sae import Dictionary
from feature_survival.trainers import TRAINERS, Job, token_batches, train_saes
from feature_survival.trainers.sparse import SparseTrainer
from feature_survival.trainers.trainer import LONGEST_GRADIENT, learning_rate

TOP = Path(__file__).resolve().parent.parent
REAL = TOP / "artifacts" / "mini-llama3" / "dense" / "cache"
WIDTH, SHARDS, ALL, ROWS = 128, 2, 7, 65_024  # rows a shard: 512 windows
SETTINGS = {"batch_tokens": 4096, "learning_rate": 3e-3, "expansion": 8, "k": 16}
FVU_WITHIN = 0.02
SEEDS = Seed(0, 0), Seed(1, 0), Seed(2, 0)


class PlainTrainer(SparseTrainer):
    """The loop as one would write it: dense codes, autograd through both products, no auxiliary loss."""

    def __init__(self, cfg: Sae, width: int, steps: int, init: int) -> None:
        super().__init__(cfg, width, steps, init)
        for weight in self._weights:
            weight.requires_grad_()
        self._plain = torch.optim.Adam(self._weights)

    def step(self, x: Tensor) -> float:
        """One step."""
        before = x @ self._encoder.T + self._b_enc
        chosen = (before * self._decoder.norm(dim=1)).topk(self._cfg.k, dim=1).indices
        codes = torch.zeros_like(before).scatter(1, chosen, before.gather(1, chosen).relu())
        loss = (codes @ self._decoder + self._b_dec - x).square().sum(1).mean()
        self._plain.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, LONGEST_GRADIENT)
        self._plain.param_groups[0]["lr"] = learning_rate(self._cfg, self._done, self._steps)
        self._plain.step()
        self._done += 1
        self.fired += (codes.detach() > 0).sum(0)
        return loss.item()

    def weights(self) -> dict[str, Tensor]:
        """As ours."""
        return {name: weight.detach() for name, weight in super().weights().items()}


def planted(rows: int, seed: int) -> Tensor:
    """float16 [rows, WIDTH]: 12 of 1,024 directions a row, the n-th as often as 1 / n, about a mean."""
    directions = torch.randn(1024, WIDTH, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    often = 1 / torch.arange(1.0, 1025)
    active = torch.multinomial(often.expand(rows, -1), 12, generator=generator)
    sizes = torch.rand(rows, 12, generator=generator) + 0.5
    sums = nn.functional.embedding_bag(active, directions, per_sample_weights=sizes, mode="sum")
    return (sums + 0.5 * torch.randn(rows, WIDTH, generator=generator) + 2).half()


def fill(folder: Path, shards: int) -> str:
    """Shards to train on and one to measure on; returns where they come from."""
    if (REAL / "evaluation-00000.safetensors").exists():
        for number in range(shards):
            (folder / f"sae-{number:05d}.safetensors").symlink_to(REAL / f"sae-{number:05d}.safetensors")
        (folder / "evaluation-00000.safetensors").symlink_to(REAL / "evaluation-00000.safetensors")
        return "activations of mini-llama3"
    for number in range(shards):
        save_file({"activations": planted(ROWS, number + 1)}, folder / f"sae-{number:05d}.safetensors")
    save_file({"activations": planted(ROWS // 4, 1000)}, folder / "evaluation-00000.safetensors")
    return "planted activations"


def settings(trainer: str) -> Sae:
    """Those of the grid but for what the comparison fixes."""
    TRAINERS.setdefault("plain", PlainTrainer)
    return load(TOP / "params.yaml").sae.model_copy(update={**SETTINGS, "trainer": trainer})


def training(
    trainer: str, seeds: tuple[Seed, ...], shards: Shards, normalization: Normalization, folder: Path
) -> Callable[[], list[Path]]:
    """What trains and writes SAEs of these seeds, into a folder made anew."""

    def run() -> list[Path]:
        shutil.rmtree(folder, ignore_errors=True)
        jobs = [Job(settings(trainer), seed, folder / seed.name) for seed in seeds]
        for together in [jobs] if trainer == "sparse" else [[job] for job in jobs]:
            train_saes(together, shards, normalization, {})
        return [job.folder for job in jobs]

    return run


def encoding(seeds: tuple[Seed, ...], shards: Shards, normalization: Normalization) -> Callable[[], None]:
    """The bound."""
    weights = (
        torch.randn(shards.width, int(SETTINGS["expansion"]) * shards.width),
        torch.randn(int(SETTINGS["expansion"]) * shards.width),
    )
    k, batch = int(SETTINGS["k"]), int(SETTINGS["batch_tokens"])

    def run() -> None:
        for rows in token_batches(len(shards), batch, 1, 0):
            x = (shards.gather(rows) - normalization.mean) / normalization.scale
            for _ in seeds:
                torch.addmm(weights[1], x, weights[0]).topk(k, dim=1, sorted=False)

    return run


def unexplained(x: Tensor, found: Tensor) -> float:
    """FVU."""
    return float((x - found).square().sum() / (x - x.mean(0)).square().sum())


def fvu(folder: Path, held_out: Tensor) -> float:
    """Of an SAE, on rows nobody was trained on."""
    return unexplained(held_out, Dictionary.read(folder).reconstruct(held_out))


def form(folder: Path) -> tuple[object, ...]:
    """Names, shapes and types of tensors, and the configuration's keys."""
    tensors = load_file(folder / "sae_weights.safetensors")
    content = read_json(folder / "cfg.json")
    shapes = sorted((name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items())
    return shapes, sorted(content), sorted(content["metadata"])


def loads_alike(folder: Path, held_out: Tensor) -> None:
    """sae-lens reads it, and reconstructs with it as well as we do."""
    from sae_lens import SAE

    with torch.no_grad():
        theirs = unexplained(held_out, SAE.load_from_disk(str(folder))(held_out))
    assert abs(theirs - fvu(folder, held_out)) < 1e-3 * theirs, f"FVU {theirs:.4f} as sae-lens loads it"


def case(seeds: tuple[Seed, ...], rivals: dict[str, tuple[str, float]], folder: Path, source: str) -> Case:
    """SAEs of these seeds; rivals: by name, the trainer and the target."""
    shards = Shards(folder, "sae")
    normalization = measure_normalization(shards)
    held_out = next(Shards(folder, "evaluation").batches(16_384))
    tokens = len(shards) // int(SETTINGS["batch_tokens"]) * int(SETTINGS["batch_tokens"])

    def same(ours: list[Path], *others: list[Path]) -> str:
        found = [[fvu(place, held_out) for place in places] for places in (ours, *others)]
        for theirs, values in zip(others, found[1:], strict=True):
            for mine, place, own, other in zip(ours, theirs, found[0], values, strict=True):
                assert form(mine) == form(place), f"{form(mine)} and {form(place)}"
                # Better is as good as equal.
                assert own <= other * (1 + FVU_WITHIN), f"FVU {own:.4f}, {place} has {other:.4f}"
        loads_alike(ours[0], held_out)
        first = [f"{values[0]:.4f}" for values in found]
        return f"FVU {first[0]} against {', '.join(first[1:])}; the same file format"

    peers = [
        Rival(name, training(trainer, seeds, shards, normalization, folder / trainer), factor)
        for name, (trainer, factor) in rivals.items()
    ]
    count = "one SAE" if len(seeds) == 1 else f"{len(seeds)} SAEs in one pass"
    return Case(
        "sae",
        f"{count}, width {int(SETTINGS['expansion']) * shards.width} of {shards.width}, k {SETTINGS['k']}, "
        f"batch {SETTINGS['batch_tokens']}, {tokens:,} tokens, {source}",
        training("sparse", seeds, shards, normalization, folder / "ours"),
        same,
        tuple(peers),
        Rival("encoding and top-k alone", encoding(seeds, shards, normalization)),
        tokens * len(seeds),
        "SAE-token",
    )


def cases(full: bool = False) -> Iterator[Case]:
    """One SAE, and three that see the tokens in the same order; in full on 455k tokens instead of 130k."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = fill(folder, ALL if full else SHARDS)
        both = {"sae-lens's trainer": ("sae_lens", 3.0), "a plain dense loop": ("plain", 1.0)}
        yield case(SEEDS[:1], both, folder, source)
        yield case(SEEDS, {"sae-lens's trainer, one after another": ("sae_lens", 3.0)}, folder, source)
