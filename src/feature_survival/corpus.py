"""The embedded corpus: the docstrings of the pinned wheels, and token windows cut from any corpus.

A *document* is one source module of one package: all its docstrings, cleaned to prose. Paragraphs are
deduplicated over the whole corpus before it is split, so no paragraph stands in two splits.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from feature_survival.artifacts import atomic_directory, read_json, write_json
from feature_survival.config import Corpus
from feature_survival.progress import progress
from feature_survival.schema import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

SPLITS = ("lm", "calibration", "sae", "evaluation")
SOURCE = "source.json"
BOS = 0  # <bos>, the one special token of our tokenizers

_SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "vendor", "externals", "__pycache__"}
_DOCTEST = re.compile(r"^\s*(>>>|\.\.\. |In \[\d+\]:|Out\[\d+\]:)")
_RULE = re.compile(r"^[\s=\-~^+|.*#_`\"':]*$")  # underlines, table borders, separators
_LETTERS = re.compile(r"[A-Za-z]")
_WORDS = re.compile(r"[A-Za-z]{2,}")


def prose(docstring: str) -> list[str]:
    """The paragraphs of a docstring that read as prose, one line each.

    Dropped: doctest input and output, tables, rules, and paragraphs with fewer than eight words or less
    than 60% letters (signatures, matrices, reference keys).
    """
    kept = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        lines = paragraph.splitlines()
        if any(_DOCTEST.match(line) for line in lines):
            continue
        # A table row has at least two wide gaps inside; two such rows make a table.
        if sum(len(re.findall(r"\S {3,}\S", line)) >= 2 for line in lines) >= 2:
            continue
        text = " ".join(line.strip() for line in lines if not _RULE.match(line))
        text = re.sub(r"\s+", " ", text).strip()
        visible = len(text.replace(" ", ""))
        if len(_WORDS.findall(text)) >= 8 and len(_LETTERS.findall(text)) >= 0.6 * visible:
            kept.append(text)
    return kept


def _module_prose(path: Path) -> list[str]:
    """Prose paragraphs of every docstring in one source file, in source order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and Python-2 leftovers inside wheels
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    paragraphs = []
    for node in nodes:
        docstring = ast.get_docstring(node, clean=True)
        if docstring:
            paragraphs += prose(docstring)
    return paragraphs


def _sources(distribution: str, pinned: dict[str, str]) -> list[tuple[str, Path]]:
    """(document id, path) of a wheel's modules, by id; refuses a version other than the pinned one."""
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"params.yaml: corpus.packages: {distribution!r} is not installed; allowed: packages of requirements.lock"
        ) from None
    wanted = pinned.get(distribution.lower())
    if found.version != wanted:
        raise InputError(
            f"requirements.lock: {distribution} {found.version} is installed, {wanted or 'no version'} is pinned; "
            f"run: make env"
        )
    files = []
    for file in found.files or []:
        if file.suffix == ".py" and not _SKIPPED_FOLDERS.intersection(file.parts) and ".." not in file.parts:
            files.append((file.as_posix(), Path(str(found.locate_file(file)))))
    return sorted(files)


def read_lock(path: Path) -> dict[str, str]:
    """Versions pinned in a requirements file, by lower-case name."""
    if not path.exists():
        raise InputError(f"{path}: no such file; it pins the packages the corpus is made of")
    pins = re.findall(r"^([A-Za-z0-9_.\-]+)==([^\s;]+)", path.read_text(), flags=re.MULTILINE)
    return {name.lower(): version for name, version in pins}


def split_of(document: str, shares: dict[str, float]) -> str:
    """The split a document belongs to: a hash of its id against cumulative shares, so no document moves when
    another is added."""
    point = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
    edge = 0.0
    for split in SPLITS:
        edge += shares[split]
        if point < edge:
            return split
    return SPLITS[-1]


def corpus_source(corpus: Corpus, lock: Path) -> dict[str, object]:
    """What fixes the corpus's bytes: versions of its packages, and the settings. Stored beside it."""
    pinned = read_lock(lock)
    return {**corpus.model_dump(), "packages": {name: pinned.get(name.lower()) for name in sorted(corpus.packages)}}


def build_corpus(corpus: Corpus, lock: Path, out: Path) -> dict[str, tuple[int, int]]:
    """Extract, clean, deduplicate and split; writes `<split>.jsonl` (one document a line: id, text) under `out`.

    Returns documents and characters by split. Byte-identical on every run with the same wheels.
    """
    pinned = read_lock(lock)
    sources = [source for package in sorted(corpus.packages) for source in _sources(package, pinned)]
    seen: set[bytes] = set()
    kept: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    characters = dict.fromkeys(SPLITS, 0)
    with ProcessPoolExecutor() as pool:
        extracted = pool.map(_module_prose, [path for _, path in sources], chunksize=32)
        modules = progress(zip(sources, extracted, strict=True), "corpus", len(sources), "module")
        for (document, _), paragraphs in modules:
            fresh = []
            for paragraph in paragraphs:
                # Digits folded: "New in version 1.4" is the same paragraph whatever the version.
                key = hashlib.sha256(re.sub(r"\d+", "0", paragraph.lower()).encode()).digest()
                if key not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            text = "\n".join(fresh)
            if len(text) < corpus.shortest_document:
                continue
            split = split_of(document, corpus.shares.model_dump())
            characters[split] += len(text)
            kept[split][document] = text
    with atomic_directory(out) as folder:
        for split, texts in kept.items():
            # In the order of a hash, so that any first part of a split is a sample of all packages.
            ordered = sorted(texts, key=lambda document: hashlib.sha256(f"order {document}".encode()).digest())
            write_documents(folder / f"{split}.jsonl", {document: texts[document] for document in ordered})
        write_json(folder / SOURCE, corpus_source(corpus, lock))
    return {split: (len(kept[split]), characters[split]) for split in SPLITS}


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
        raise InputError(f"{path}: not a loadable tokenizer ({error}); run the base stage, or dvc pull") from None
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
