"""Stage `base`: what a model is, trained here or taken from a hub at one commit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from feature_survival.artifacts import atomic_directory, atomic_file, base_folder, read_json, training_log, write_json
from feature_survival.catalogue import Hub, Model, Text, Texts, site_named
from feature_survival.config import Params
from feature_survival.hub import fetch_model, fetch_sae, stream_documents
from feature_survival.models import COMMIT, build, site_width
from feature_survival.pretrain import LOG_COLUMNS, make_base
from feature_survival.progress import progress
from feature_survival.sae import Dictionary
from feature_survival.schema import InputError
from feature_survival.text import read_vocabulary, write_documents


def run(params: Params, root: Path, name: str) -> None:
    """Write a catalogue model's base folder. Of a hub model it holds the commit instead of weights, which stay in the
    hub's own cache. What any later stage needs of the network is fetched here."""
    spec = params.model(name)
    with atomic_directory(base_folder(root, name)) as folder, atomic_file(training_log(root, name)) as log:
        if spec.weights.training is not None:
            make_base(spec, spec.weights.training, params.window, root / "data", folder, log)
        elif spec.weights.hub is not None:
            fetch_base(name, spec, spec.weights.hub, folder)
            log.write_text(",".join(LOG_COLUMNS) + "\n")


def fetch_base(name: str, spec: Model, hub: Hub, folder: Path) -> None:
    """Fetch a published model: weights into the hub's cache; configuration, tokenizer, documents, SAEs into `folder`.

    InputError where the published configuration is not what the catalogue says.
    """
    snapshot = fetch_model(hub.repository, hub.revision)
    _check_configuration(name, spec, snapshot)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if (snapshot / file).exists():
            shutil.copyfile(snapshot / file, folder / file)
    read_vocabulary(folder)  # refused here rather than hours later
    (folder / "text").mkdir()
    opened: dict[Text, Iterator[str]] = {}
    for split in Texts.model_fields:
        source: Text | None = getattr(hub.text, split)
        if source is None:
            continue
        # Splits of one dataset take documents that follow one another.
        whole = source.model_copy(update={"documents": None})
        stream = opened.setdefault(whole, stream_documents(whole))
        texts = list(progress(islice(stream, source.documents), f"{name} {split}", source.documents, "document"))
        if len(texts) < (source.documents or 1):
            raise InputError(
                f"models.{name}.weights.hub.text.{split}: {source.documents or 1} documents asked, {source.dataset} "
                f"has {len(texts)} left"
            )
        texts = texts if split != "perplexity" else ["\n\n".join(texts)]
        numbered = {f"{source.dataset} {number}": text for number, text in enumerate(texts)}
        write_documents(folder / "text" / f"{split}.jsonl", numbered)
    for site, sae in hub.saes.items():
        fetch_sae(sae.release, sae.sae_id, folder / "saes" / site)
        _check_sae(f"models.{name}.weights.hub.saes.{site}", spec, site, folder / "saes" / site)
    write_json(folder / COMMIT, {"repository": hub.repository, "revision": hub.revision})


def _check_sae(where: str, spec: Model, site: str, folder: Path) -> None:
    with torch.device("meta"):
        width = site_width(build(spec), spec.site(site))
    reads = site_named((read_json(folder / "cfg.json").get("metadata") or {}).get("hook_name"))
    if reads is not None and reads != spec.sites[site]:
        raise InputError(f"{where}: the SAE reads {reads}, the site is {spec.sites[site]}")
    try:
        Dictionary.read(folder, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _check_configuration(name: str, spec: Model, snapshot: Path) -> None:
    from transformers import AutoConfig

    published = AutoConfig.from_pretrained(snapshot, local_files_only=True)
    wanted = {"architectures": [spec.architecture], "vocab_size": spec.vocabulary, **spec.config}
    for key, value in wanted.items():
        found = getattr(published, key, None)
        if found != value:
            raise InputError(f"models.{name}: {key} is {value!r} in the catalogue, {found!r} in what is published")
