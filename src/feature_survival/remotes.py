"""`feature-survival pull`: fetch outputs that are not here from a DVC remote, and say in one line why where it refuses.

`dvc pull` takes an HTTP remote that is down or forbids for one that is empty: it lists the hashes it did not find.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from feature_survival.schema import InputError


def pull(root: Path, name: str | None) -> None:
    """Ask the remote for one object dvc.lock names and that is missing here, then let `dvc pull` fetch all of them.

    What is here stays as it is, recorded or not. InputError where there is no such remote, it refuses, or it lacks that
    object (then nothing was changed), and where `dvc pull` fails later on: what arrived is in DVC's cache, and the next
    pull goes on from there.
    """
    missing = _ask(root, name)
    if not missing:
        print("pull: nothing is missing")
        return
    command = [sys.executable, "-m", "dvc", "pull", *(["--remote", name] if name else []), *missing]
    if code := subprocess.run(command, cwd=root).returncode:
        raise InputError(f"dvc pull ended with exit code {code}; its message is above; pull again to go on")


def _ask(root: Path, name: str | None) -> list[str]:
    """Look up the first missing output on the remote, by DVC's own file system for it. Returns all missing ones."""
    from dvc.repo import Repo

    label = f"remote {name!r}" if name else "the default remote"
    try:
        with Repo(str(root)) as repo:
            label = f"remote {name or repo.config['core'].get('remote')!r}"
            store = repo.cloud.get_remote_odb(name, "pull")
            pushed = [out for out in repo.index.outs if out.use_cache and out.hash_info]
            missing = [out for out in pushed if not Path(out.fs_path).exists()]
            if missing:
                store.fs.info(store.oid_to_path(missing[0].hash_info.value))
            return [str(out) for out in missing]
    except Exception as error:  # each kind of remote has its own
        reason = error.__cause__ or error
        first = (str(reason) or type(reason).__name__).splitlines()[0]
        raise InputError(f"{label}: {first}; nothing was changed") from None
