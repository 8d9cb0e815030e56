"""The only owner of paths; readers that name the file that is missing or broken.

`artifacts/<model>/base`                   weights, config, tokenizer; of a hub model its commit instead of weights, and
                                           documents and pretrained SAEs
`artifacts/<model>/prune/<condition>`      what a condition changes of the weights, achieved sparsity, bits a weight
`artifacts/<model>/<condition>/cache`      activation shards
`artifacts/<model>/<condition>/sae/<seed>` SAEs in SAELens's format, and how far each feature moved in training
`artifacts/saes/<model>/<condition>/<seed>` copies of those SAEs that are released
`artifacts/metrics/<model>/<condition>`    metrics.json, features.parquet, matches.parquet
`artifacts/<model>/variants/<site>`        SAEs of the second study: of the dense model, and of every compressed one
`artifacts/variants/<model>/<site>`        variants.parquet, compressors.parquet, latents.parquet
`artifacts/contexts/<model>/<condition>.parquet` where features fire most, and what they do there
`artifacts/report/index.html`              the report
`artifacts/training/<model>.csv`           losses of the base model
`artifacts/timeline.csv`                   when each stage ran, a line each time it ended well
`results/`, `paper_figures/`               tidy tables; figures and printed tables
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from feature_survival.atomic import atomic_directory as atomic_directory
from feature_survival.atomic import atomic_file as atomic_file
from feature_survival.config import Seed
from feature_survival.schema import InputError

if TYPE_CHECKING:
    import pandas as pd
    import torch


class Cell(NamedTuple):
    """One (model, condition) and where its artifacts lie under the repository's top."""

    root: Path
    model: str
    condition: str

    def __str__(self) -> str:
        return f"{self.model}/{self.condition}"

    @property
    def base(self) -> Path:
        """Folder of the model's dense weights and tokenizer."""
        return base_folder(self.root, self.model)

    @property
    def prune(self) -> Path:
        """Folder of what the condition changes."""
        return prune_folder(self.root, self.model) / self.condition

    @property
    def cache(self) -> Path:
        """Folder of the activation shards."""
        return self.root / "artifacts" / self.model / self.condition / "cache"

    @property
    def sae(self) -> Path:
        """Folder of the SAEs of all seeds."""
        return self.root / "artifacts" / self.model / self.condition / "sae"

    @property
    def released(self) -> Path:
        """Folder of the copies of its SAEs that are released."""
        return self.root / "artifacts" / "saes" / self.model / self.condition

    @property
    def metrics(self) -> Path:
        """Folder of the cell's numbers."""
        return self.root / "artifacts" / "metrics" / self.model / self.condition

    @property
    def contexts(self) -> Path:
        """Where features fire most, in the dense model and in this one."""
        return self.root / "artifacts" / "contexts" / self.model / f"{self.condition}.parquet"

    def sae_of(self, seed: Seed) -> Path:
        """Folder of one SAE."""
        return self.sae / seed.name

    @property
    def dense(self) -> Cell:
        """The same model's dense cell."""
        return Cell(self.root, self.model, "dense")


def base_folder(root: Path, model: str) -> Path:
    """Folder of a model's dense weights and tokenizer."""
    return root / "artifacts" / model / "base"


def prune_folder(root: Path, model: str) -> Path:
    """Folder of a model's conditions."""
    return root / "artifacts" / model / "prune"


def text_folder(root: Path, model: str) -> Path:
    """Folder of a model's documents, `<split>.jsonl`: a hub model's own, or the embedded corpus."""
    own = base_folder(root, model) / "text"
    return own if own.exists() else root / "data"


def training_log(root: Path, model: str) -> Path:
    """A model's training log."""
    return root / "artifacts" / "training" / f"{model}.csv"


def timeline(root: Path) -> Path:
    """When each stage ran, on which of a grid's workers; every stage appends to it, and it is no output of DVC's."""
    return root / "artifacts" / "timeline.csv"


def report(root: Path) -> Path:
    """The page that shows everything."""
    return root / "artifacts" / "report" / "index.html"


class Place(NamedTuple):
    """One (model, site) of the second study and where its artifacts lie under the repository's top."""

    root: Path
    model: str
    site: str  # by its name in the model's `sites`

    def __str__(self) -> str:
        return f"{self.model}/{self.site}"

    def cell(self, condition: str) -> Cell:
        """The model under a condition."""
        return Cell(self.root, self.model, condition)

    @property
    def saes(self) -> Path:
        """Folder of the SAEs."""
        return self.root / "artifacts" / self.model / "variants" / self.site

    @property
    def metrics(self) -> Path:
        """Folder of the numbers."""
        return self.root / "artifacts" / "variants" / self.model / self.site


def released_sae(place: Place) -> Path:
    """Folder of the SAE that others published for a hub model's site."""
    return base_folder(place.root, place.model) / "saes" / place.site


def write_json(path: Path, content: Any) -> None:
    """Strict JSON (no NaN), sorted keys, two-space indent."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Content of a JSON artifact; InputError where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run dvc repro again") from None


def read_csv(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """A CSV artifact; InputError where it, or one of the columns needed, is missing. One without rows has them all."""
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=list(columns))
    except ValueError as error:  # pandas' parser errors
        raise InputError(f"{path}: not a readable CSV ({str(error).splitlines()[0]}); run dvc repro") from None
    for column in columns:
        if column not in frame:
            raise InputError(f"{path}: column {column!r} is missing; found: {', '.join(frame.columns)}")
    return frame


def read_parquet(path: Path, columns: Iterable[str] = ()) -> pd.DataFrame:
    """A parquet artifact; InputError where it is missing or broken, or lacks one of the columns needed."""
    import pandas as pd
    from pyarrow.lib import ArrowInvalid

    try:
        frame = pd.read_parquet(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except ArrowInvalid as error:
        raise InputError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); run dvc repro") from None
    for column in columns:
        if column not in frame:
            raise InputError(f"{path}: column {column!r} is missing; written with other settings? run dvc repro")
    return frame


def read_tensors(path: Path, names: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; InputError where it is missing, truncated, foreign or lacks one of `names`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); delete it and run dvc repro again") from None
    for name in names:
        if name not in tensors:
            raise InputError(f"{path}: tensor {name!r} is missing; found: {', '.join(sorted(tensors))}")
    return tensors


def _missing(path: Path) -> InputError:
    return InputError(f"{path}: no such file; run the stage that writes it, or dvc pull")
