"""`feature-survival pull`: fetch outputs that are not here from a DVC remote, and say in one line why where it refuses.

`dvc pull` takes an HTTP remote that is down or forbids for one that is empty: it lists the hashes it did not find.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from feature_survival.schema import InputError


def pull(root: Path, name: str | None) -> None:
    """Ask the remote for one object dvc.lock names and that is missing here, then fetch all of them, and hash each.

    DVC by itself takes what a remote sends for what it asked for; a bit flipped there would be in the artifacts. What
    is here stays as it is, recorded or not. InputError where there is no such remote, it refuses, or it lacks that
    object (then nothing was changed), and where an object is missing or damaged: what arrived whole is in DVC's cache,
    and the next pull goes on from there.
    """
    from dvc.exceptions import CheckoutError
    from dvc.repo import Repo
    from dvc.utils.humanize import get_summary

    for library in ("dvc", "dvc_data", "dvc_objects"):  # they report what is raised here too
        logging.getLogger(library).setLevel(logging.CRITICAL)
    label, advice = f"remote {name!r}" if name else "the default remote", "nothing was changed"
    try:
        with Repo(str(root)) as repo:
            name = name or repo.config["core"].get("remote")
            label = f"remote {name!r}"
            missing, nothing_is_here = _ask(repo, name)
        if not missing:
            print("pull: nothing is missing")
            return
        advice = "pull again to go on"
        with Repo(str(root), config={"remote": {name: {"verify": True}}}) as repo:
            # A target takes DVC a second and more to look up: of a fresh clone everything is wanted anyway.
            stats = repo.pull(targets=None if nothing_is_here else missing, remote=name)["stats"]
    except CheckoutError as error:
        lacking = ", ".join(error.target_infos)
        raise InputError(f"{label}: missing there, or not the bytes dvc.lock names: {lacking}; {advice}") from None
    except Exception as error:  # each kind of remote has its own
        reason = error.__cause__ or error
        raise InputError(f"{label}: {(str(reason) or type(reason).__name__).splitlines()[0]}; {advice}") from None
    print(f"pull: {get_summary(stats.items())}")


def _ask(repo: Any, name: str | None) -> tuple[list[str], bool]:
    """Look up the first missing output on the remote, by DVC's own file system for it.

    Returns all missing ones, and whether none is here.
    """
    store = repo.cloud.get_remote_odb(name, "pull")
    pushed = [out for out in repo.index.outs if out.use_cache and out.hash_info]
    missing = [out for out in pushed if not Path(out.fs_path).exists()]
    if missing:
        store.fs.info(store.oid_to_path(missing[0].hash_info.value))
    return [out.fs_path for out in missing], len(missing) == len(pushed)
