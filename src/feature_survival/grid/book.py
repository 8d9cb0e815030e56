"""DVC's side of the grid: what is stale, and the record of what was run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feature_survival.artifacts import atomic_file
from feature_survival.grid.worker import FOLDER
from feature_survival.schema import InputError


class Book:
    """The graph as DVC sees it; the only one who asks or tells DVC anything.

    `dvc.lock` is written once, at the end, in the order in which `dvc repro` would have (writing it takes seconds
    whatever is new). Until then entries are in a journal, one line a stage; a coordinator that starts again after a
    kill reads them, unless dvc.lock has changed since. DVC's lock is held all the time: one coordinator at a time.
    """

    def __init__(self, repo: Any, force: bool) -> None:
        from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

        self.repo, self.force = repo, force
        self.root = Path(repo.root_dir)
        self.graph = get_active_graph(repo.index.graph)
        self.stages: list[Any] = plan_repro(self.graph, collect_stages(repo, ["dvc.yaml"]))
        self.plan = self.stages  # those of them that are looked at
        self.recorded: set[Any] = set()
        self.lock, self.journal = self.root / "dvc.lock", self.root / FOLDER / "journal.jsonl"
        self.before: dict[Any, list[tuple[int, int] | None]] = {}
        self.read: dict[Any, dict[str, Any]] = {}
        self._read_journal()

    def _state(self) -> str:
        """What dvc.lock was when a journal began."""
        return hashlib.sha256(self.lock.read_bytes() if self.lock.exists() else b"").hexdigest()

    def _read_journal(self) -> None:
        from dvc.stage.loader import StageLoader

        self.journal.parent.mkdir(parents=True, exist_ok=True)
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        if not lines or lines[0] != self._state():
            self.journal.write_text(self._state())
            return
        known = {stage.addressing: stage for stage in self.stages}
        for line in lines[1:]:
            with contextlib.suppress(json.JSONDecodeError):  # killed in mid-line
                for name, entry in json.loads(line).items():
                    if stage := known.get(name):
                        StageLoader.fill_from_lock(stage, entry)
                        stage.cmd_changed = entry["cmd"] != stage.cmd
                        self.recorded.add(stage)

    def plan_needed(self) -> None:
        """Plan the stages that changed, and those whose outputs they read and that are not here.

        Other missing outputs are left missing, as by `dvc repro --allow-missing`, which gives up where a stage that
        changed reads one. What a stage changes downstream is only known once it has run: then plan again.
        """
        ahead = [
            stage for stage in self.stages if stage.cmd and stage.changed(True, list(self.graph.successors(stage)))
        ]
        needed = set(ahead)
        while ahead:
            missing = {stage for stage in self.graph.successors(ahead.pop()) if stage.cmd and self.lacks(stage)}
            ahead += missing - needed
            needed |= missing
        self.plan = [stage for stage in self.stages if stage in needed]

    def lacks(self, stage: Any) -> bool:
        """Whether an output of a stage is not here."""
        return not all(Path(out.fs_path).exists() for out in stage.outs)

    def upstream(self, stage: Any) -> set[Any]:
        """The planned stages whose outputs a stage reads."""
        return set(self.graph.successors(stage)) & set(self.plan)

    def downstream(self, stage: Any) -> set[Any]:
        """The planned stages that read a stage's outputs."""
        return set(self.graph.predecessors(stage)) & set(self.plan)

    def is_stale(self, stage: Any) -> bool:
        """Whether a stage must be run; its upstream is recorded. Restores what DVC's run cache has."""
        from dvc.repo.reproduce import _reproduce_stage

        if not stage.cmd or stage.frozen:  # data.dvc
            _reproduce_stage(stage)
            return False
        if not self.force and not stage.changed():
            return False
        self.recorded.discard(stage)  # from here on it knows its new inputs beside its old outputs
        if not self.force and self._restore(stage):
            self.record(stage)
            return False
        self.before[stage] = self._outputs(stage)
        self.read[stage] = self._inputs(stage)
        return True

    def _restore(self, stage: Any) -> bool:
        """Fetch what the same command made of the same inputs from DVC's run cache, if it is there.

        As DVC's StageCache.restore, which wants the outputs removed first; ours stay until a stage replaces them.
        """
        from dvc.stage.cache import _can_hash
        from dvc.stage.serialize import to_single_stage_lockfile

        cache = self.repo.stage_cache
        if not stage.changed_stage() and stage.deps_cached() and all(out.hash_info for out in stage.outs):
            entry = to_single_stage_lockfile(stage)
        else:
            stage.save_deps()
            entry = cache._load(stage) if _can_hash(stage) else None
        cached = cache._create_stage(entry, wdir=stage.wdir) if entry else None
        if not cached or not cached.outs_cached():
            return False
        stage.remove_outs()
        cached.checkout()
        return True

    def _inputs(self, stage: Any) -> dict[str, Any]:
        """What `record` will note of each dependency; of parameters, every key with its value."""
        from dvc.dependency import ParamsDependency

        found: dict[str, Any] = {}
        for dep in stage.deps:
            value = dep.get_hash().value if dep.exists else None
            if isinstance(dep, ParamsDependency):
                found |= {f"{dep}: {key}": of for key, of in (value or {}).items()}
            else:
                found[str(dep)] = value
        return found

    def _outputs(self, stage: Any) -> list[tuple[int, int] | None]:
        """What tells a file or folder from the one that replaces it."""
        paths = [Path(out.fs_path) for out in stage.outs]
        return [(path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None for path in paths]

    def not_written(self, stage: Any) -> str:
        """The outputs that a stage did not replace, with commas; where `dvc repro` ran it they would be missing."""
        old, new = self.before.pop(stage), self._outputs(stage)
        pairs = zip(stage.outs, old, new, strict=True)
        return ", ".join(str(out) for out, before, after in pairs if after is None or after == before)

    def record(self, stage: Any) -> None:
        """Hash and cache a stage's outputs, and note in the journal what dvc.lock is to say.

        InputError where an input was changed since it was found stale: the result may be of the old one.
        """
        from dvc.stage.serialize import to_lockfile

        if before := self.read.pop(stage, {}):
            for name, value in self._inputs(stage).items():
                if before.get(name) != value:
                    raise InputError(f"{name} was changed while it ran; its result is not recorded, run it again")
        stage.save(run_cache=all(out.use_cache for out in stage.outs))
        stage.commit()
        with self.journal.open("a") as journal:
            journal.write("\n" + json.dumps(to_lockfile(stage)))
            journal.flush()
            os.fsync(journal.fileno())
        self.recorded.add(stage)

    def close(self) -> None:
        """Write dvc.lock."""
        from dvc.dvcfile import Lockfile

        if self.recorded:
            with atomic_file(self.lock) as partial:
                if self.lock.exists():
                    shutil.copyfile(self.lock, partial)
                in_order = [stage for stage in self.stages if stage in self.recorded]
                Lockfile(self.repo, str(partial)).dump_stages(in_order)
        self.journal.unlink()


@contextmanager
def open_book(root: Path, force: bool) -> Iterator[Book]:
    """The checkout's book, closed whatever happens; InputError where DVC does not understand the checkout."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with Repo(str(root)) as repo, lock_repo(repo), repo.scm_context(quiet=True):
            book = Book(repo, force)
            try:
                yield book
            finally:
                disturbed = signal.signal(signal.SIGINT, signal.SIG_IGN)
                book.close()
                signal.signal(signal.SIGINT, disturbed)
    except DvcException as error:
        raise InputError(f"dvc: {str(error).splitlines()[0]}") from None
