"""`feature-survival pull`: fetch outputs from a DVC remote, and say in one line why where it refuses.

`dvc pull` takes an HTTP remote that is down or forbids for one that is empty: it lists the hashes it did not find.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from feature_survival.schema import InputError


def pull(root: Path, name: str | None) -> None:
    """Ask the remote for one object dvc.lock names, then let `dvc pull` fetch all that is missing here.

    InputError where there is no such remote, it refuses, or it lacks that object (then nothing was changed), and where
    `dvc pull` fails later on: what arrived is in DVC's cache, and the next pull goes on from there.
    """
    _ask(root, name)
    command = [sys.executable, "-m", "dvc", "pull", *(["--remote", name] if name else [])]
    if code := subprocess.run(command, cwd=root).returncode:
        raise InputError(f"dvc pull ended with exit code {code}; its message is above; pull again to go on")


def _ask(root: Path, name: str | None) -> None:
    """Look up the first pushed output on the remote, by DVC's own file system for it."""
    from dvc.repo import Repo

    label = f"remote {name!r}" if name else "the default remote"
    try:
        with Repo(str(root)) as repo:
            label = f"remote {name or repo.config['core'].get('remote')!r}"
            store = repo.cloud.get_remote_odb(name, "pull")
            pushed = [out.hash_info.value for out in repo.index.outs if out.use_cache and out.hash_info]
            if pushed:
                store.fs.info(store.oid_to_path(pushed[0]))
    except Exception as error:  # each kind of remote has its own
        reason = error.__cause__ or error
        first = (str(reason) or type(reason).__name__).splitlines()[0]
        raise InputError(f"{label}: {first}; nothing was changed") from None
