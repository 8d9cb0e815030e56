"""Writing: every file and every folder appears whole or not at all, whoever else writes and whatever is killed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from feature_survival.schema import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `path` when the block ends without an error.

    A kill inside the block leaves the old folder as it was; leftovers of processes that are gone are removed first.
    Of two that write the same folder the last one's is left, whole. InputError, naming `path`, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for aside in _leftovers(path.parent, f".{path.name}.partial-old-*"):
        if not path.exists():  # killed between the two renames of `_replace`
            aside.rename(path)
    for leftover in _leftovers(path.parent, f".{path.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier process of this number
    try:
        with _room_for(path):
            partial.mkdir()
            yield partial
            for file in sorted(partial.rglob("*")):
                if file.is_file():
                    _fsync(file)
            _replace(path, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(path: Path, partial: Path) -> None:
    """Put a folder where another one may be: it cannot be renamed over a full one, which goes aside first."""
    aside = path.parent / f".{path.name}.partial-old-{os.getpid()}"
    while True:
        try:
            partial.rename(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        shutil.rmtree(aside, ignore_errors=True)  # where another process was quicker the last time round
        with suppress(FileNotFoundError):  # another process has just put it aside
            path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
    _fsync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary sibling with the same suffix that replaces `path` when the block ends without an error.

    InputError, naming `path`, where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in _leftovers(path.parent, f".{path.stem}.partial-*{path.suffix}"):
        leftover.unlink(missing_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        with _room_for(path):
            yield partial
            _fsync(partial)
            partial.replace(path)
            _fsync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _leftovers(folder: Path, pattern: str) -> Iterator[Path]:
    """What processes that are gone left behind; what one that still runs is writing is left to it."""
    for path in folder.glob(pattern):
        process = re.search(r"partial-(?:old-)?(\d+)", path.name)
        if process and not is_running(int(process.group(1))):
            yield path


def is_running(process: int) -> bool:
    """Whether another process has this number."""
    if process == os.getpid():
        return False  # its number, taken again
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Libraries report a full disk by errors of their own, and without a name: InputError with both."""
    try:
        yield
    except Exception as raised:
        error: BaseException | None = raised
        while error:  # a library that fails to close the file as well hides the first behind another
            for number in NO_ROOM:
                texts = f"{os.strerror(number)} (os error {number})", f"[Errno {number}]"  # of Rust; of many files
                if getattr(error, "errno", None) == number or any(text in str(error) for text in texts):
                    raise InputError(f"{path}: {os.strerror(number).lower()}; nothing was changed") from None
            error = error.__cause__ or error.__context__
        raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
