"""Tiny models of all four families, a tiny corpus, a tiny project to run the command line in."""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from filelock import FileLock
from ruamel.yaml import YAML
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from feature_survival import artifacts, catalogue, config, models
from feature_survival.activations import Shards
from feature_survival.corpus import SPLITS
from feature_survival.text import documents, train_tokenizer

TOP = Path(__file__).resolve().parent.parent
PROGRAMS = Path(sys.executable).parent  # feature-survival and dvc of this environment
VOCABULARY = 300
SITE_WIDTH = 16  # of `shards`
BLOCKS = 3

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
_GEMMA = {
    **_LLAMA,
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": _LLAMA,
    "Gemma2ForCausalLM": {
        **_GEMMA,
        "attn_implementation": "eager",
        "attn_logit_softcapping": 0.5,  # small enough to show where it is lost
        "final_logit_softcapping": 3.0,
    },
    "Gemma3ForCausalLM": _GEMMA,
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 32},
    "Qwen2ForCausalLM": {key: value for key, value in _LLAMA.items() if key != "head_dim"},  # biases on q, k, v
    "Qwen3ForCausalLM": _LLAMA,  # norms on q and k
    "MistralForCausalLM": {**_LLAMA, "sliding_window": 4},
    "GPTNeoXForCausalLM": {  # attention and MLP side by side, q, k and v in one matrix
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "tie_word_embeddings": False,
    },
    "OPTForCausalLM": {  # an MLP without a module of its own, on [batch x position, width]
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
    },
}
TRAINING = {
    "tokens": 640,
    "batch_windows": 4,
    "learning_rate": 5e-3,
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "seed": 0,
}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    if config.option.markexpr != "gpu":  # the suite compares on the CPU; `pytest -m gpu` runs what needs a device
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging.disable_progress_bar()


def entry(architecture: str, **training: Any) -> config.Model:
    """A catalogue entry; keywords change its training."""
    return config.Model(
        architecture=architecture,
        vocabulary=VOCABULARY,
        config=FAMILIES[architecture],
        weights=catalogue.Weights(training=catalogue.Training(**{**TRAINING, **training})),
        dtype="float32",
        sites={"resid_post": "resid_post.1", "mlp_out": "mlp_out.1", "attention": "attn_z.1"},
        budget={},
    )


def tiny(architecture: str, seed: int = 0) -> PreTrainedModel:
    """An untrained model; noise on every parameter, so that norms and biases matter."""
    torch.manual_seed(seed)
    model = models.build(entry(architecture)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def save_as_cell(model: PreTrainedModel, root: Path, condition: str = "wanda-50") -> artifacts.Cell:
    """A cell whose base folder holds `model`."""
    cell = artifacts.Cell(root, "tiny", condition)
    cell.base.mkdir(parents=True)
    model.save_pretrained(cell.base)
    return cell


def truncate(path: Path) -> None:
    """Cut the second half of a file off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(root: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def hooks_on(model: torch.nn.Module) -> int:
    """How many forward hooks its modules carry."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny("LlamaForCausalLM")


@pytest.fixture
def gpt2() -> PreTrainedModel:
    return tiny("GPT2LMHeadModel")


@pytest.fixture
def tokens() -> Tensor:
    drawn = torch.randint(1, VOCABULARY, (6, 16), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Sparse mixtures of 32 planted directions, far from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(32, SITE_WIDTH, generator=generator), dim=1)
    codes = torch.rand(3000, 32, generator=generator) * (torch.rand(3000, 32, generator=generator) < 0.06)
    folder = tmp_path_factory.mktemp("shards")
    save_file({"activations": (3 * codes @ directions + 5).half()}, folder / "sae-00000.safetensors")
    return Shards(folder, "sae")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: four splits of random sentences."""
    folder = tmp_path_factory.mktemp("corpus")
    sentence = "the matrix of an array returns values where each axis is summed over given input and output shape"
    rng = random.Random(0)
    for split in SPLITS:
        lines = []
        for number in range(60):
            text = " ".join(rng.choices(sentence.split(), k=60))
            lines.append(f'{{"id": "{split}/{number}.py", "text": "{text}"}}\n')
        (folder / f"{split}.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> Tokenizer:
    return train_tokenizer(documents(corpus / "lm.jsonl"), VOCABULARY)


@pytest.fixture(scope="session")
def shipped() -> dict[str, Any]:
    """The repository's params.yaml as plain data."""
    return YAML(typ="safe").load(TOP / "params.yaml")


WriteParams = Callable[[Path, dict[str, Any]], Path]


@pytest.fixture(scope="session")
def write_params(shipped: dict[str, Any]) -> WriteParams:
    """Write a params.yaml: the repository's, with values at dotted keys changed."""

    def write(folder: Path, changes: dict[str, Any]) -> Path:
        content = copy.deepcopy(shipped)
        for key, value in changes.items():
            *way, last = key.split(".")
            place = content
            for part in way:
                place = place[part]
            place[last] = copy.deepcopy(value)
        YAML(typ="safe").dump(content, folder / "params.yaml")
        return folder / "params.yaml"

    return write


TINY_STUDY: dict[str, Any] = {
    "study.bases": ["tiny"],
    "study.models": ["tiny"],
    "study.conditions": ["dense", "magnitude-50", "wanda-50"],
    "release.conditions": ["dense"],
    "window": 16,
    "models.tiny": entry("LlamaForCausalLM").model_dump(),
    "prune.calibration_windows": 8,
    "activations.sae_windows": 40,
    "activations.evaluation_windows": 8,
    "activations.shard_windows": 16,
    "activations.batch_windows": 8,
    "sae.expansion": 2,
    "sae.k": 4,
    "sae.batch_tokens": 64,
    "sae.warmup_steps": 2,
    "variants.models": ["tiny"],
    "variants.sites": ["resid_post", "attention"],
    "variants.further_conditions": [],
    "variants.compressors": ["rtn-4"],
    "variants.levels": [0.5],
    "variants.redundancy": {"narrow": {"expansion": 1}},
    "variants.sae_windows": 40,
    "variants.evaluation_windows": 60,
    "variants.splice_windows": 4,
    "variants.probe_windows": 60,
    "prune.quantization_group": 16,
    "metrics.splice_windows": 4,
    "metrics.causal_features": 10,
    "metrics.causal_windows": 2,
    "metrics.bootstrap_samples": 20,
    "seeds": {"dense": [[0, 0], [1, 1]], "compressed": [[0, 0]]},
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def assert_refused(ended: Ended, message: str) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert ended.out == ""


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """Run `feature-survival` in this process, in a folder. Anything but an InputError propagates."""
    from feature_survival.cli import main

    def run(folder: Path, *arguments: str) -> Ended:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["feature-survival", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capfd.readouterr())

    yield run
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def _trained(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, shipped: dict[str, Any]
) -> Callable[[Path, WriteParams], None]:
    """Fill a folder with a project whose base model is trained (once a session)."""
    from feature_survival.stages.base import run

    top = tmp_path_factory.mktemp("trained")

    def fill(folder: Path, write: WriteParams) -> None:
        if not (top / "params.yaml").exists():
            shutil.copytree(corpus, top / "data")
            run(config.load(write(top, TINY_STUDY)), top, "tiny")
        shutil.copytree(top, folder, dirs_exist_ok=True)

    return fill


@pytest.fixture
def project(tmp_path: Path, write_params: WriteParams, _trained: Callable[[Path, WriteParams], None]) -> Path:
    """A project of its own: params.yaml, data, a trained base model."""
    folder = tmp_path / "project"
    _trained(folder, write_params)
    return folder


@pytest.fixture(scope="session")
def fresh(
    tmp_path_factory: pytest.TempPathFactory,
    write_params: WriteParams,
    _trained: Callable[[Path, WriteParams], None],
) -> Callable[[str], Path]:
    """Make a project under DVC, of our stages up to `cache`, of which only the base model is there and recorded."""
    import pipeline

    top = tmp_path_factory.mktemp("grid")
    template = top / "template"

    def make(name: str) -> Path:
        if not template.exists():
            _trained(template, write_params)
            write_params(template, pipeline.STUDY)
            pipeline.lay_out(template, pipeline.STAGES)
            pipeline.dvc(template, "commit", "--force", "base")
        return shutil.copytree(template, top / name)

    return make


@pytest.fixture(scope="session")
def serial(fresh: Callable[[str], Path]) -> Path:
    """The project as `dvc repro` leaves it."""
    import pipeline

    folder = fresh("serial")
    pipeline.dvc(folder, "repro")
    return folder


MINIATURE = {  # over section `quick` of params.yaml
    "study.conditions": "[dense, wanda-50]",
    "models.nano-llama3.weights.training.tokens": 160_000,
    "prune.calibration_windows": 32,
    "activations.sae_windows": 64,
    "activations.evaluation_windows": 48,
    "activations.shard_windows": 32,
    "variants.compressors": "[rtn-4]",
    "variants.levels": "[0.5]",
    "variants.sae_windows": 64,
    "variants.evaluation_windows": 48,
    "variants.splice_windows": 16,
    "variants.probe_windows": 48,
    "metrics.splice_windows": 16,
    "metrics.causal_features": 50,
    "metrics.causal_windows": 4,
    "metrics.bootstrap_samples": 100,
    "sae.batch_tokens": 512,
    "sae.dead_after_steps": 4,
}


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A checkout with a whole miniature grid computed, by the entry that `make quick` uses. Change copies of it.

    Where several processes run the suite the first that asks makes it for all.
    """
    if worker_id == "master":
        return _miniature(tmp_path_factory.mktemp("miniature") / "clone")
    shared = tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "miniature.lock"):
        made = shared / "miniature.made"
        if not made.exists():
            _miniature(shared / "miniature")
            made.touch()
    return shared / "miniature"


def _miniature(folder: Path) -> Path:
    overrides = [word for key, value in MINIATURE.items() for word in ("--set", f"{key}={value}")]
    command = [PROGRAMS / "feature-survival", "quick", folder, *overrides]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, env={**os.environ, "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| nano-llama3 | wanda-50" in done.stdout
    return folder
