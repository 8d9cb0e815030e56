"""Wanda as llm-compressor does it, in an environment that has it: prune.py starts this.

    .llmcompressor/bin/python benchmarks/prune_llmcompressor.py FOLDER BATCH THREADS SPARSITY

FOLDER holds `model`, a checkpoint, and `tokens.safetensors`, int64 [windows, position]; it gets `masks.safetensors`,
True = kept. Prints the seconds of `oneshot` alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import WandaPruningModifier
from loguru import logger
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main(folder: Path, batch: int, threads: int, sparsity: float) -> None:
    """Prune and time."""
    logger.remove()  # of what it says, nothing belongs in a table
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    data = Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()})
    unused = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), pad_token="a"
    )
    started = time.perf_counter()
    oneshot(
        model=model,
        dataset=data,
        processor=unused,  # it asks for one even where tokens are given
        recipe=WandaPruningModifier(sparsity=sparsity, mask_structure="0:0", ignore=["re:.*lm_head"]),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
        shuffle_calibration_samples=False,
        batch_size=batch,
    )
    print(time.perf_counter() - started)
    masks = {
        name.removeprefix("model.layers."): module.weight != 0
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers.")
    }
    save_file(masks, folder / "masks.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
