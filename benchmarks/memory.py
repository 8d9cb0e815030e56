"""What stages hold at most, beside what `feature-survival plan` says: a random Llama of 300M parameters, CPU.

    python benchmarks/memory.py
    python benchmarks/memory.py --layers 3 --dtypes bfloat16

Every stage runs by itself through the command line; its peak is what the system has counted of its resident memory.
The plan's bound is 20% either way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from feature_survival.config import load
from feature_survival.plan.devices import DEVICES
from feature_survival.plan.memory import peak
from feature_survival.plan.work import Plan

TOP = Path(__file__).resolve().parent.parent
MODEL, VOCABULARY, WINDOW = "random", 32_000, 64
GIB = 2**30
CHANGES: dict[str, Any] = {
    "study.bases": [MODEL],
    "study.models": [MODEL],
    "window": WINDOW,
    "device": "cpu",
    "prune.calibration_windows": 16,
    "prune.batch_windows": 8,
    "activations.sae_windows": 64,
    "activations.evaluation_windows": 32,
    "activations.batch_windows": 16,
    "activations.shard_windows": 64,
    "sae.expansion": 4,
    "sae.batch_tokens": 512,
    "sae.warmup_steps": 2,
    "sae.dead_after_steps": 1,  # so that features die, and are revived, in so few steps
    "seeds": {"dense": [[0, 0]], "compressed": [[0, 0]]},
    "metrics.splice_windows": 16,
    "metrics.causal_features": 5,
    "metrics.causal_windows": 1,
    "metrics.bootstrap_samples": 10,
    "variants.models": [MODEL],
    "variants.sites": ["resid_post"],
    "variants.further_conditions": [],
    "variants.compressors": [],
    "variants.levels": [0.5],
    "variants.redundancy": {"narrow": {"expansion": 1}},
    "variants.sae_windows": 64,
    "variants.evaluation_windows": 32,
    "variants.splice_windows": 16,
    "variants.probe_windows": 32,
}

RUNS = [  # condition, prune.hidden_states, stage
    ("magnitude-50", "device", "prune"),
    ("wanda-50", "host", "prune"),
    ("wanda-50", "device", "prune"),
    ("wanda-50", "device", "cache"),
    ("wanda-50", "device", "sae"),
    ("wanda-50", "device", "metrics"),
    ("wanda-50", "device", "variants"),
]
WHERE = {"prune": [[]], "variants": [["resid_post"]]}  # a stage is run at; others in both cells


def model_of(layers: int, dtype: str) -> dict[str, Any]:
    """Its catalogue entry: 16.8M parameters a block, 32.8M in the embedding."""
    site = f"resid_post.{layers // 2}"
    return {
        "architecture": "LlamaForCausalLM",
        "vocabulary": VOCABULARY,
        "config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": WINDOW,
            "tie_word_embeddings": True,
        },
        "weights": {
            "training": {
                "tokens": 1,
                "batch_windows": 1,
                "learning_rate": 1.0,
                "warmup_steps": 0,
                "weight_decay": 0,
                "seed": 0,
            }
        },
        "dtype": dtype,
        "sites": {"resid_post": site, "mlp_out": f"mlp_out.{layers // 2}", "attention": f"attn_out.{layers // 2}"},
        "budget": {},
    }


def write_params(project: Path, layers: int, dtype: str, condition: str, hidden_states: str) -> None:
    """The repository's settings, made small."""
    content = YAML(typ="safe").load(TOP / "params.yaml")
    content["models"][MODEL] = model_of(layers, dtype)
    changes = {
        **CHANGES,
        "study.conditions": ["dense", condition],
        "report.conditions": [condition],
        "release.conditions": ["dense"],
        "variants.condition": condition,
        "prune.hidden_states": hidden_states,
    }
    for key, value in changes.items():
        *way, last = key.split(".")
        place = content
        for part in way:
            place = place[part]
        place[last] = value
    YAML(typ="safe").dump(content, project / "params.yaml")


def make_project(project: Path, layers: int) -> None:
    """Documents of random words, and a base folder whose weights were never trained."""
    import random

    import torch
    from transformers import PreTrainedTokenizerFast

    from feature_survival.models import build
    from feature_survival.text import documents, train_tokenizer

    (project / "data").mkdir(parents=True, exist_ok=True)
    words = [line for file in sorted((TOP / "src").rglob("*.py")) for line in file.read_text().split()]
    drawn = random.Random(0)  # noqa: S311
    for split in ("lm", "calibration", "sae", "evaluation"):
        lines = [json.dumps({"id": f"{n}", "text": " ".join(drawn.choices(words, k=400))}) for n in range(100)]
        (project / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    write_params(project, layers, "float32", "wanda-50", "device")
    torch.manual_seed(0)
    model = build(load(project / "params.yaml").model(MODEL)).to(torch.bfloat16)
    base = project / "artifacts" / MODEL / "base"
    model.save_pretrained(base)
    tokenizer = train_tokenizer(documents(project / "data" / "lm.jsonl"), 2_000)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>").save_pretrained(base)


# A process that is forked from a large one counts the large one's memory as its own: a small one stands between.
BETWEEN = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, "-c", "from feature_survival.cli import main; main()", *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def measure(project: Path, *command: str) -> float:
    """Peak resident bytes of `feature-survival ...`, run in the project."""
    ended = subprocess.run(
        [sys.executable, "-c", BETWEEN, *command],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(TOP / "src")},
        stdout=subprocess.PIPE,
        text=True,
    )
    if ended.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with status {ended.returncode}")
    return int(ended.stdout.split()[-1]) * 1024


def main() -> None:
    """Make the model, run the stages, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16, help="decoder blocks of 16.8M parameters (default: 16)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument(
        "--record",
        type=Path,
        help="JSON of measurements: what stands there is not measured again; the project stays in a folder beside it",
    )
    arguments = parser.parse_args()
    if arguments.layers < 1:
        parser.error("--layers must be 1 or more")
    record: dict[str, float] = {}
    if arguments.record and arguments.record.exists():
        record = json.loads(arguments.record.read_text())
    print("| dtype | stage | planned GiB | measured GiB | ratio |\n| --- | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        # Stages read what those before them left: what is measured later needs the same project.
        project = arguments.record.with_suffix("") if arguments.record else Path(folder)
        if not (project / "artifacts").exists():
            make_project(project, arguments.layers)
        for dtype in arguments.dtypes:
            for condition, hidden_states, stage in RUNS:
                write_params(project, arguments.layers, dtype, condition, hidden_states)
                row = f"{dtype} | {stage}, {condition}" + (
                    f", hidden states: {hidden_states}" if stage == "prune" else ""
                )
                if row not in record:
                    cells = WHERE.get(stage, [["dense"], [condition]])
                    record[row] = max(measure(project, stage, MODEL, *cell) for cell in cells)
                    if arguments.record:
                        arguments.record.write_text(json.dumps(record, indent=2) + "\n")
                planned = peak(Plan.of(load(project / "params.yaml"), MODEL), stage, DEVICES["cpu-2"]).host
                found = record[row]
                print(f"| {row} | {planned / GIB:.2f} | {found / GIB:.2f} | {planned / found:.2f} |", flush=True)


if __name__ == "__main__":
    main()
