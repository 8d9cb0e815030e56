"""The embedded corpus: the docstrings of the pinned wheels.

A *document* is one source module of one package: all its docstrings, cleaned to prose. Paragraphs are
deduplicated over the whole corpus before it is split, so no paragraph stands in two splits.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from feature_survival.artifacts import atomic_directory, write_json
from feature_survival.config import Corpus
from feature_survival.progress import progress
from feature_survival.schema import InputError
from feature_survival.text import write_documents

SPLITS = ("lm", "calibration", "sae", "evaluation")
SOURCE = "source.json"

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
