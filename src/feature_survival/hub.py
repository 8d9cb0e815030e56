"""The only module that reaches a hub: models, pretrained SAEs and documents, by name and pinned revision.

Downloads lie in huggingface_hub's own cache (`HF_HOME`): nothing is fetched twice, a broken download goes on with
the files still missing, and a machine without network works from a cache filled elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_survival.artifacts import atomic_directory, read_json
from feature_survival.catalogue import Text
from feature_survival.schema import InputError, unknown

_INDEX = "model.safetensors.index.json"
_TOKENIZER = ["tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
_FILES = ["config.json", _INDEX, "model*.safetensors", *_TOKENIZER]
# sae-lens's loaders that read safetensors or npz; what the other ones read could hold code.
_TENSORS_ONLY = {None, "sae_lens", "gemma_2", "gemma_3", "llama_scope"}
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def fetch_model(repository: str, revision: str) -> Path:
    """Local folder of a model of the hub: config, safetensors and tokenizer files, nothing else.

    Without a request where the cache holds them all. InputError, one line, where access or the revision is missing,
    the hub is out of reach, the download breaks off, or the repository has no safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(cached: bool) -> Path:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES, local_files_only=cached))

    what = f"{repository} at {revision}"
    include = " ".join(f"--include '{pattern}'" for pattern in _FILES)
    with _in_one_line(what, f"hf download {repository} --revision {revision} {include}"):
        try:
            folder = snapshot(cached=True)
            if _lacking(folder) is None and any(any(folder.glob(pattern)) for pattern in _TOKENIZER):
                return folder
        except LocalEntryNotFoundError:
            pass
        folder = snapshot(cached=False)
    lacking = _lacking(folder)
    if lacking is not None:
        raise InputError(f"{what}: the repository has no {lacking}; a transformers checkpoint in safetensors is needed")
    return folder


def fetch_sae(release: str, sae_id: str, folder: Path) -> None:
    """A pretrained SAE of sae-lens's list, or of a hub repository in its format, written to `folder` in that format.

    `release` and `sae_id` as in `sae_lens.SAE.from_pretrained`. InputError where sae-lens does not know them, the file
    is of a kind that could hold code, or the download fails; then nothing is written.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    what = f"SAE {release}, {sae_id}"
    releases = get_pretrained_saes_directory()
    if release in releases:
        listed = releases[release]
        if sae_id not in listed.saes_map:
            raise _unknown(f"SAEs of {release}", sae_id, listed.saes_map)
        if listed.conversion_func not in _TENSORS_ONLY:
            raise InputError(
                f"{what}: published in a format that could hold code, which is never read; take another release"
            )
    elif "/" not in release:
        raise _unknown("releases of sae-lens", release, releases)
    with _in_one_line(what, f"python -c \"import sae_lens; sae_lens.SAE.from_pretrained('{release}', '{sae_id}')\""):
        sae = SAE.from_pretrained(release, sae_id, device="cpu")
    with atomic_directory(folder) as partial:
        sae.save_model(partial)


def stream_documents(source: Text) -> Iterator[str]:
    """All documents of a data set, whatever `source.documents` says, in their order; read as they are asked for.

    InputError where the data set, its configuration, split or column is missing, or it cannot be reached or read.
    """
    from datasets import load_dataset

    where = source.dataset + (f" at {source.revision}" if source.revision else "")
    # datasets streams past the cache, so a copy is a folder of its own
    elsewhere = (
        f"hf download {source.dataset} --repo-type dataset --revision {source.revision or 'main'} --local-dir DIR"
    )
    with _in_one_line(where, f"{elsewhere}, and name DIR as the data set"):
        path, options = _located(source)
        rows = load_dataset(path, source.name, split=source.split, streaming=True, **options)
        for number, row in enumerate(rows):
            if not isinstance(row.get(source.column), str):
                raise InputError(
                    f"{where}: document {number} has no text in {source.column!r}; found: {', '.join(row)}"
                )
            yield row[source.column]


def _located(source: Text) -> tuple[str, dict[str, Any]]:
    """First argument and options of `datasets.load_dataset`."""
    path = Path(source.dataset)
    if path.is_file():
        if path.suffix not in _BUILDERS:
            raise InputError(
                f"{path}: found {path.suffix or 'no suffix'}; documents are read from {', '.join(_BUILDERS)}"
            )
        return _BUILDERS[path.suffix], {"data_files": str(path)}
    return (str(path.resolve()), {}) if path.is_dir() else (source.dataset, {"revision": source.revision})


def shard_names(folder: Path) -> list[str]:
    """Names of the files that a checkpoint's weights are in; InputError for an index that names none."""
    index = folder / _INDEX
    if not index.exists():
        return ["model.safetensors"]
    content = read_json(index)
    if not isinstance(content, dict) or not isinstance(content.get("weight_map"), dict):
        raise InputError(f"{index}: weight_map is missing; allowed: the file of each tensor, as save_pretrained has it")
    return sorted(set(content["weight_map"].values()))


def _lacking(folder: Path) -> str | None:
    """The first file that a checkpoint in the folder would need and has not."""
    return next((name for name in ["config.json", *shard_names(folder)] if not (folder / name).exists()), None)


def _unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """`unknown` for lists of hundreds: the nearest five stand for them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0)
    return unknown(what, name, near + [f"and {len(names) - len(near)} more"] * (len(names) > len(near)))


@contextmanager
def _in_one_line(what: str, elsewhere: str) -> Iterator[None]:
    """Errors of the block as InputError: what went wrong between here and the hub, and what to do about it.

    `elsewhere` is the command that fills the cache on a machine with network.
    """
    from huggingface_hub import errors, get_token

    try:
        yield
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        if isinstance(error.__cause__, errors.HfHubHTTPError):  # the hub's own answer says more
            error = error.__cause__
        said = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.GatedRepoError):
            do = "ask for access with the account of HF_TOKEN" if get_token() else "and set HF_TOKEN to its token"
            text = f"gated; accept its licence on its page, {do}"
        elif isinstance(error, errors.RepositoryNotFoundError):
            text = "no such repository" + (
                ", or none HF_TOKEN may see" if get_token() else "; if private, set HF_TOKEN"
            )
        elif isinstance(error, errors.RevisionNotFoundError):
            text = "the repository has no such revision; take a commit, tag or branch listed on its page"
        elif isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
            text = f"not in the cache, and the hub is out of reach ({said}); with network, run: {elsewhere}"
        elif isinstance(error, errors.EntryNotFoundError) or status == 404:
            text = f"the repository has no such file ({said})"
        elif status is not None:
            text = f"the hub refused ({said}); check HF_TOKEN, or run it again later"
        elif isinstance(error, (ValueError, FileNotFoundError)):  # of sae-lens and datasets: they name what there is
            text = said
            if type(error).__name__ == "DatasetNotFoundError":
                text += " If it is gated or private: accept its licence on its page and set HF_TOKEN"
        else:  # connection, disk or rights, midway
            text = f"the download broke off ({said}); run it again, it goes on with the files still missing"
        raise InputError(f"{what}: {text}") from None
