"""The user's text: documents, split by a hash, cut into windows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from feature_survival.audit.request import NEEDED, Request
from feature_survival.corpus import split_of
from feature_survival.schema import InputError
from feature_survival.text import Vocabulary, windows, write_documents

SHARES = {"lm": 0.0, "calibration": 0.0, "sae": 0.8, "evaluation": 0.2}  # of documents, where SAEs are trained
CHARACTERS = 12  # a token; more than any language needs, so that a long file is not read to its end


class Words(NamedTuple):
    """Windows of one split."""

    tokens: Tensor  # int64 [windows, position]
    documents: int  # they were cut from

    @property
    def predicted(self) -> int:
        """How many tokens are measured on: all but each window's first."""
        return self.tokens.shape[0] * (self.tokens.shape[1] - 1)


def read(request: Request, vocabulary: Vocabulary, scratch: Path) -> dict[str, Words]:
    """The windows of split `evaluation`, and of split `sae` where SAEs are to be trained.

    A document goes to a split by a hash of its text, so that equal ones stand on one side. InputError where the file
    is missing, empty, foreign or too short.
    """
    budgets = {"evaluation": request.tokens} | ({"sae": request.sae_tokens} if request.train_sae else {})
    kept: dict[str, dict[str, str]] = {split: {} for split in budgets}
    room = {split: CHARACTERS * max(budget, NEEDED[split]) for split, budget in budgets.items()}
    for text in documents(request.text):
        name = hashlib.sha256(text.encode()).hexdigest()
        split = split_of(name, SHARES) if request.train_sae else "evaluation"
        if room[split] > 0 and name not in kept[split]:
            kept[split][name] = text
            room[split] -= len(text)
        if max(room.values()) <= 0:
            break
    if not any(kept.values()):
        raise InputError(f"--text: {request.text} holds no text; at least {NEEDED['evaluation']:,} tokens are needed")
    return {split: _cut(request, vocabulary, scratch, split, kept[split], budget) for split, budget in budgets.items()}


def _cut(
    request: Request, vocabulary: Vocabulary, scratch: Path, split: str, texts: dict[str, str], budget: int
) -> Words:
    """At most `budget` tokens of a split, in whole windows."""
    path = scratch / f"{split}.jsonl"
    write_documents(path, texts)
    lines = [f"{text}\n" for text in texts.values()]  # as `windows` joins them
    if budget < (body := request.window - 1):
        option = "--sae-tokens" if split == "sae" else "--tokens"
        raise InputError(f"--window: {request.window} asked, {option} is {budget:,}: not one window; lower --window")
    found = sum(map(len, vocabulary.tokenizer.encode_batch_fast(lines, add_special_tokens=False)))
    count = min(found, budget) // body
    if found < NEEDED[split] or count == 0:
        purpose = "to train SAEs" if split == "sae" else "to measure"
        hint = "; documents are set apart by blank lines, and split by a hash" if request.train_sae else ""
        raise InputError(
            f"--text: {request.text} gives {found:,} tokens {purpose}; {max(NEEDED[split], body):,} are needed{hint}"
        )
    return Words(windows(scratch, split, vocabulary, request.window, count), len(texts))


def documents(path: Path) -> Iterator[str]:
    """The documents of a text file, which blank lines set apart, or of JSON lines with `text`; none is empty."""
    try:
        with path.open(encoding="utf-8") as stream:
            texts = _of_json(path, stream) if path.suffix in (".jsonl", ".json") else _of_text(stream)
            yield from (text for text in map(str.strip, texts) if text)
    except UnicodeDecodeError as error:
        raise InputError(f"--text: {path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except FileNotFoundError:
        raise InputError(f"--text: {path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"--text: {path}: is a folder; allowed: a .txt or .jsonl file") from None


def _of_text(lines: Iterator[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        else:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _of_json(path: Path, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputError(f"--text: {path}: line {number}: not a JSON object with a string `text`")
        yield text
