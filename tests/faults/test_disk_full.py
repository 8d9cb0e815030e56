"""A disk that fills up, in every stage: a line that names the artifact; the old one untouched; on with more room."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import COMMANDS, FULL, Tried, stages

ONCE = [
    *("base tiny", "prune tiny", "cache tiny dense", "sae tiny wanda-50", "metrics tiny wanda-50"),
    *(
        "variants tiny attention",
        "contexts tiny wanda-50",
        "summarize",
        "figure survival",
        "tables",
        "claims",
        "report",
    ),
    "data --force",
]
KINDS = ["base tiny", *COMMANDS, "data --force"] if FULL else ONCE  # in the drill every stage, here one of each kind
SMALL_DISK = [
    *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c"),
    'mount -t tmpfs -o size=64m none "$1" && cp -r "$0/." "$1" && shift && exec "$@"',
]


def may_mount() -> bool:
    """Whether this user may have a small disk of its own."""
    if not shutil.which("unshare"):
        return False
    words = [*SMALL_DISK[:-1], "mount -t tmpfs none /mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.parametrize("fault", ["full", "limit"])
def test_a_stage_without_room_says_so_in_one_line_and_goes_on_when_there_is(
    finished: Path, tmp_path: Path, tried: Tried, fault: str
) -> None:
    if fault == "full" and not may_mount():
        pytest.skip("this user may not mount a small disk; the limit on file sizes stands for it")
    if fault == "limit" and not FULL and may_mount():
        pytest.skip("make drill tries both; here the small disk")
    folder, wrap = tmp_path / "project", []
    if fault == "full":
        folder.mkdir()
        wrap = [*SMALL_DISK, str(finished), str(folder)]
    else:
        shutil.copytree(finished, folder)
    ended = stages(folder, fault, KINDS, *wrap)
    assert [one["command"] for one in ended] == KINDS
    reason = "no space left on device" if fault == "full" else "file too large"
    for one in ended:
        said = one["said"]
        assert one["code"] == 2, one
        assert said.startswith("error: ") and said.count("\n") == 1 and reason in said.lower(), one
        assert said.split()[1].startswith(("artifacts", "results", "paper_figures", "data")), one
        assert one["untouched"] and not one["left"], one
        assert one["again"], one
    tried(f"{'disk full' if fault == 'full' else 'file size limited'}, in every stage", len(ended), "named; goes on")
