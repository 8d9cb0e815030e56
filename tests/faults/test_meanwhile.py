"""What happens while a stage runs: another run, the same stage by hand, an edit of what it reads."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pipeline
import pytest
from conftest import WriteParams
from ruamel.yaml import YAML

from feature_survival.atomic import atomic_directory, atomic_file
from feature_survival.inputs import unchanged
from feature_survival.schema import InputError

from .conftest import Tried


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


WAIT = """
# A stage that is told when to go on, behind the same guard as every subcommand.
import time
from pathlib import Path
from feature_survival.inputs import unchanged
with unchanged(Path(), "prune", {"model": "tiny"}):
    Path("began").touch()
    while not Path("go").exists():
        time.sleep(0.02)
"""


def test_an_edit_of_params_in_mid_run_is_named_and_nothing_is_recorded(
    serial: Path, fresh: Callable[[str], Path], write_params: WriteParams, tried: Tried
) -> None:
    """DVC notes the parameters that it finds once a stage has ended: the edited ones, beside results of the others."""
    folder = fresh("edited")
    (folder / "wait.py").write_text(WAIT)
    stages = YAML(typ="safe").load(folder / "dvc.yaml")
    stages["stages"]["prune"]["cmd"] = "feature-survival prune ${item.model} && python wait.py"
    YAML().dump(stages, folder / "dvc.yaml")
    with pipeline.start(folder, "dvc", "repro", "prune@tiny") as running:
        until((folder / "began").exists)
        write_params(folder, {**pipeline.STUDY, "prune.calibration_windows": 4})
        (folder / "go").touch()
        said = running.stdout.read() if running.stdout else ""
    assert running.returncode != 0
    assert "InputError: params.yaml: prune.calibration_windows was changed while stage prune ran" in said
    assert "prune@tiny" not in (folder / "dvc.lock").read_text()
    tried("params.yaml edited in mid-run", 1, "refused by key; not recorded")


GRAPH = {
    "stages": {
        "sae": {
            "matrix": {"model": ["a"], "condition": ["dense"]},
            "cmd": "true",
            "deps": ["src/one.py", "data/${item.model}.txt"],
            "params": ["models.${item.model}.sites.${study.site}", "sae", "window"],
        }
    }
}
PARAMS = {"study": {"site": "mlp"}, "models": {"a": {"sites": {"mlp": 1}}}, "sae": {"k": 4}, "window": 3, "other": 1}


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    for name, text in (("src/one.py", "x = 1"), ("src/two.py", ""), ("data/a.txt", "a")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    YAML().dump(GRAPH, tmp_path / "dvc.yaml")
    YAML().dump(PARAMS, tmp_path / "params.yaml")
    return tmp_path


def replace(folder: Path, name: str, text: str) -> None:
    with atomic_file(folder / name) as path:
        path.write_text(text)


EDITS = {
    "params.yaml: sae.k": lambda top: YAML().dump({**PARAMS, "sae": {"k": 5}}, top / "params.yaml"),
    "params.yaml: models.a.sites.mlp": lambda top: YAML().dump({**PARAMS, "models": {}}, top / "params.yaml"),
    "src/one.py": lambda top: (top / "src/one.py").write_text("x = 2"),
    "data/a.txt": lambda top: replace(top, "data/a.txt", "a"),
}
OTHERS = {
    "another key": lambda top: YAML().dump({**PARAMS, "other": 2}, top / "params.yaml"),
    "another source": lambda top: (top / "src/two.py").write_text("x = 2"),
    "the same again": lambda top: (top / "src/one.py").write_text("x = 1"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_input_that_changes_while_a_stage_runs_is_named(declared: Path, name: str) -> None:
    with (
        pytest.raises(InputError, match=f"^{name} was changed while stage sae ran; its result is not recorded"),
        unchanged(declared, "sae", {"model": "a", "condition": "dense"}),
    ):
        EDITS[name](declared)


@pytest.mark.parametrize("name", OTHERS)
def test_an_edit_of_what_a_stage_does_not_read_is_none_of_its_business(declared: Path, name: str) -> None:
    with unchanged(declared, "sae", {"model": "a", "condition": "dense"}):
        OTHERS[name](declared)


def test_a_second_run_in_one_checkout_is_refused_and_the_first_goes_on(tmp_path: Path, tried: Tried) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    pipeline.dvc(tmp_path, "init", "--quiet")
    slow = {"cmd": "touch began; while test ! -e go; do sleep .05; done; echo one > first", "outs": ["first"]}
    YAML().dump({"stages": {"slow": slow}}, tmp_path / "dvc.yaml")
    with pipeline.start(tmp_path, "dvc", "repro") as running:
        until((tmp_path / "began").exists)
        second = pipeline.run(tmp_path, "dvc", "repro")
        (tmp_path / "go").touch()
        assert running.wait(60) == 0
    assert second.returncode != 0 and "is busy, it is being blocked by" in second.stderr, second.stderr
    assert (tmp_path / "first").read_text() == "one\n"
    tried("two runs in one checkout", 1, "the second is refused, the first unharmed")


WRITER = """
import sys, time
from pathlib import Path
from feature_survival.atomic import atomic_directory
for number in range(200):
    with atomic_directory(Path("whole")) as folder:
        for file in range(5):
            (folder / str(file)).write_text(f"{sys.argv[1]} {number}")
"""


def test_a_stage_started_twice_at_once_leaves_one_result_whole(tmp_path: Path, tried: Tried) -> None:
    writers = [pipeline.start(tmp_path, "python", "-c", WRITER, name) for name in ("one", "two", "three")]
    for writer in writers:
        said, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    assert len({(tmp_path / "whole" / str(file)).read_text() for file in range(5)}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    tried("one artifact written by three processes at once", 600, "the last one's is left, whole")


def test_what_another_process_is_writing_is_left_to_it(tmp_path: Path) -> None:
    with pipeline.start(tmp_path, "sleep", "60") as other:
        theirs = tmp_path / f".whole.partial-{other.pid}"
        theirs.mkdir()
        with atomic_directory(tmp_path / "whole"):
            pass
        assert theirs.exists()
        other.kill()
    with atomic_directory(tmp_path / "whole"):
        pass
    assert not theirs.exists()
