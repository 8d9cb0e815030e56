"""Clock, locale, a checkout that nobody may write: the same bytes, or one line."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pipeline
import pytest

from .conftest import COMMANDS, FULL, Tried, stages

SOME = ["prune tiny", "sae tiny wanda-50", "metrics tiny wanda-50", "figure survival", "tables", "claims"]
FAR = {
    "TZ": "Pacific/Apia",
    "SOURCE_DATE_EPOCH": "1",
    "LC_ALL": "C",
    "LANG": "",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONHASHSEED": "7",
}


@pytest.mark.parametrize("locale", ["C", *(["de_DE", "tr_TR"] if FULL else [])])
def test_clock_and_locale_leave_every_byte_as_it_was(finished: Path, tmp_path: Path, tried: Tried, locale: str) -> None:
    """The clock is decades ahead and runs backwards; Python is told not to repair the C locale. German writes 1,5,
    Turkish has another capital i."""
    if locale != "C":
        made = subprocess.run(["localedef", "-i", locale, "-f", "UTF-8", str(tmp_path / locale)], capture_output=True)
        if made.returncode:
            pytest.skip(f"no definition of {locale} on this machine")
    folder = Path(shutil.copytree(finished, tmp_path / "project"))
    far = {**FAR, "LC_ALL": locale, "LOCPATH": str(tmp_path)}
    for ended in stages(folder, "clock", COMMANDS if FULL else SOME, **far):
        assert ended["code"] == 0 and ended["untouched"], ended
    tried(f"clock decades ahead and running backwards, time zone, locale {locale}", 1, "same bytes")


def test_times_of_files_in_the_past_and_the_future_make_nothing_stale(
    serial: Path, tmp_path: Path, tried: Tried
) -> None:
    folder = Path(shutil.copytree(serial, tmp_path / "project"))
    for number, path in enumerate(sorted((folder / "artifacts").rglob("*"))):
        os.utime(path, (number % 2 * 4_000_000_000, number % 2 * 4_000_000_000))
    assert "Running stage" not in pipeline.dvc(folder, "repro")
    tried("times of files in 1970 and 2096", 1, "nothing is run again")


WRITING = ["prune tiny", *(["figure survival", "claims", "report"] if FULL else [])]
READING = [["verdicts"], *([["check"], ["plan"], ["figure", "--help"]] if FULL else [])]
BOUND = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]  # root, whom permissions then bind


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="nothing is read-only to root")
def test_a_checkout_that_may_not_be_written_is_one_line_and_can_still_be_read(
    finished: Path, tmp_path: Path, tried: Tried
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "project"))
    before = pipeline.contents(folder)
    subprocess.run(["chmod", "-R", "a-w", str(folder)], check=True)
    wrap = BOUND if os.getuid() == 0 else []
    for command in WRITING:
        ended = pipeline.run(folder, *wrap, "feature-survival", *command.split())
        assert ended.returncode == 2, ended
        assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1, ended.stderr
        assert "Permission denied" in ended.stderr, ended.stderr
    for words in READING:
        ended = pipeline.run(folder, *wrap, "feature-survival", *words)
        assert ended.returncode == 0 and ended.stdout, ended
    assert pipeline.contents(folder) == before
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)
    tried("read-only checkout", len(WRITING) + len(READING), "one line where it writes; what reads works")
