"""Text that models read: documents on disk, tokenizers, and the windows of tokens cut from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feature_survival.artifacts import read_json
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

BOS = 0  # <bos>, the one special token of our tokenizers


def write_documents(path: Path, texts: dict[str, str]) -> None:
    """A split as JSON lines, one document each: id, text."""
    lines = [json.dumps({"id": document, "text": text}, ensure_ascii=False) for document, text in texts.items()]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def documents(path: Path) -> Iterator[str]:
    """The texts of a split, in file order; InputError where the file is missing."""
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    text = json.loads(line)["text"]
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"{path}: line {number}: not a document {{id, text}}; run: feature-survival data --force"
                    ) from None
                yield text
    except FileNotFoundError:
        advice = "make data, or the base stage of a hub model"
        raise InputError(f"{path}: no such file; run: {advice}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; run: feature-survival data --force") from None


class Vocabulary(NamedTuple):
    """A tokenizer, and the token that leads every window."""

    tokenizer: Tokenizer
    bos: int


def read_vocabulary(folder: Path) -> Vocabulary:
    """Of a model's folder: `tokenizer.json`, and `bos_token_id` of `config.json`.

    InputError where a file is missing or foreign, or names no such token.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{path}: not a loadable tokenizer ({error}); if ours, run the base stage or dvc pull"
        ) from None
    bos = read_json(folder / "config.json").get("bos_token_id")
    if not isinstance(bos, int):
        raise InputError(f"{folder / 'config.json'}: bos_token_id is {bos!r}; allowed: the number of a token")
    return Vocabulary(tokenizer, bos)


def token_texts(vocabulary: Vocabulary) -> list[str | None]:
    """What each token stands for inside a text, by number; None for <bos>."""
    decode, bos = vocabulary.tokenizer.decode, vocabulary.bos
    # Some decoders strip a text's first space, so each token stands after another one.
    anchor = vocabulary.tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    skipped = len(decode(anchor))
    count = vocabulary.tokenizer.get_vocab_size()
    return [None if token == bos else decode([*anchor, token])[skipped:] for token in range(count)]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE over `texts` with one special token, `<bos>` (id 0)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def windows(data: Path, split: str, vocabulary: Vocabulary, length: int, count: int | None) -> Tensor:
    """The first `count` token windows of a split, int64 [count, length]; `None` takes all there are.

    Documents are joined line by line and cut; every window is led by `<bos>`, which stands nowhere else.
    Raises InputError where the split holds fewer.
    """
    import torch

    tokenizer, bos = vocabulary
    body = length - 1
    pieces: list[np.ndarray] = []
    total = 0
    for texts in batched(documents(data / f"{split}.jsonl"), 64):
        for encoding in tokenizer.encode_batch_fast([f"{text}\n" for text in texts], add_special_tokens=False):
            pieces.append(np.asarray(encoding.ids, dtype=np.int64))
            total += len(pieces[-1])
        if count is not None and total >= count * body:
            break
    available = total // body
    if count is not None and count > available:
        raise InputError(
            f"split {split!r} of {data} holds {available} windows of {length} tokens; {count} were asked for"
        )
    count = available if count is None else count
    if count == 0:
        raise InputError(f"split {split!r} of {data} holds no whole window of {length} tokens")
    stream = np.concatenate(pieces)[: count * body].reshape(count, body)
    return torch.from_numpy(np.pad(stream, ((0, 0), (1, 0)), constant_values=bos))


class Strided(NamedTuple):
    """Windows that overlap, so that every token is predicted from as much context as there is."""

    tokens: Tensor  # int64 [windows, position]
    new: Tensor  # int64 [windows]: how many of a window's last positions no window before it has


def strided_windows(data: Path, split: str, vocabulary: Vocabulary, length: int, stride: int) -> Strided:
    """A split as one running text, in windows of `length` tokens, each led by <bos>, one every `stride` tokens.

    The last window ends where the text does. InputError where the text is shorter than a window.
    """
    import torch

    ids = [token for text in documents(data / f"{split}.jsonl")
           for token in vocabulary.tokenizer.encode(text, add_special_tokens=False).ids]  # fmt: skip
    body = length - 1
    if len(ids) < body:
        raise InputError(f"split {split!r} of {data} holds {len(ids)} tokens; a window needs {body}")
    starts = [*range(0, len(ids) - body, stride), len(ids) - body]
    ends = np.asarray([0, *(start + body for start in starts)])
    stream = np.stack([np.asarray(ids[start : start + body]) for start in starts])
    tokens = np.pad(stream, ((0, 0), (1, 0)), constant_values=vocabulary.bos)
    return Strided(torch.from_numpy(tokens), torch.from_numpy(np.diff(ends)))


def batched(items: Iterable[str], size: int) -> Iterator[tuple[str, ...]]:
    """Tuples of up to `size` items (itertools has it from Python 3.12 on)."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch
