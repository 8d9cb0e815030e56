"""dvc.lock after a kill, and the artifacts it names after damage.

DVC rewrites the whole of dvc.lock in place after each stage, two seconds for the default grid: killed there, it leaves
an empty or a torn file, and does not start again. Every stage therefore sets a whole copy aside as it begins.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_survival.atomic import atomic_file
from feature_survival.schema import InputError

NAME = "dvc.lock"
NO_STAGES = "schema: '2.0'\nstages: {}\n"  # what stands for it before the first stage has ended


def _kept(root: Path) -> Path:
    return root / ".dvc" / "tmp" / "dvc.lock.whole"


def keep(root: Path) -> None:
    """Set a copy of dvc.lock aside, in a stage that DVC or the grid has started: nobody writes dvc.lock then."""
    if "DVC_STAGE" not in os.environ:
        return
    lock = root / NAME
    with contextlib.suppress(OSError, InputError), atomic_file(_kept(root)) as partial:
        partial.write_bytes(lock.read_bytes() if lock.exists() else NO_STAGES.encode())


def mend(root: Path) -> str:
    """Put right what a kill left of DVC's files. Returns a line on what was done, or nothing.

    InputError where dvc.lock is torn and no copy is there.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    lock, waiting = root / NAME, root / ".dvc" / "tmp" / "rwlock"
    if waiting.exists():
        try:
            json.loads(waiting.read_text())
        except ValueError:  # DVC would not start; it is a list of processes, and whoever runs writes it anew
            waiting.unlink()
    if not lock.exists():
        return ""
    try:
        text = lock.read_text(encoding="utf-8")
        if text.endswith("\n") and "stages" in YAML(typ="safe").load(text):
            return ""
    except (YAMLError, TypeError, UnicodeDecodeError):
        pass
    if not _kept(root).exists():
        raise InputError(f"{lock}: cut off; put it back (git checkout dvc.lock), what was computed is in DVC's cache")
    with atomic_file(lock) as partial:
        shutil.copyfile(_kept(root), partial)
    return "dvc.lock: was cut off by a kill; put back as it was when the last stage began"


@contextmanager
def _no_memory() -> Iterator[None]:
    """DVC hashes every file anew: otherwise it trusts one whose size and time of change are as they were."""
    before = os.environ.get("DVC_SITE_CACHE_DIR")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["DVC_SITE_CACHE_DIR"] = empty
        try:
            yield
        finally:
            os.environ.pop("DVC_SITE_CACHE_DIR")
            if before is not None:
                os.environ["DVC_SITE_CACHE_DIR"] = before


def damaged(root: Path) -> list[str]:
    """Files whose bytes are not those that dvc.lock names; of what DVC does not cache, the folder. Reads all."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with _no_memory(), Repo(str(root)) as repo:
            files = repo.data_status(granular=True)["uncommitted"].get("modified", [])
            outs = [
                str(out)
                for stage in repo.index.stages
                for out in stage.outs
                if not out.use_cache and out.exists and out.hash_info and out.changed_checksum()
            ]
    except DvcException as error:
        raise InputError(f"dvc: {str(error).splitlines()[0]}") from None
    return sorted({name for name in [*files, *outs] if not name.endswith("/")})


def check_bytes(root: Path) -> str:
    """A line that says that every artifact is as recorded; InputError naming the first that is not."""
    found = damaged(root)
    if found:
        more = f" (and {len(found) - 1} more: {', '.join(found[1:4])})" if found[1:] else ""
        raise InputError(f"{found[0]}: not the bytes that dvc.lock names{more}; delete it and run: dvc repro")
    return "artifacts: every file that is here has the bytes that dvc.lock names"
