"""The only module that reaches a hub. (Its functions arrive with the next commit.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from feature_survival.catalogue import Text


def fetch_model(repository: str, revision: str) -> Path:
    """Snapshot folder of a repository at a commit."""
    raise NotImplementedError


def fetch_sae(release: str, sae_id: str, folder: Path) -> None:
    """Write one of sae-lens's pretrained SAEs to a folder."""
    raise NotImplementedError


def stream_documents(source: Text) -> Iterator[str]:
    """The texts of a dataset, in order."""
    raise NotImplementedError
