"""The grid on a real local cluster: what `dvc repro` gives, byte for byte, whatever is killed on the way.

The pipeline is ours up to `cache` on a tiny model; where a stage must fail or wait, shell commands stand in for ours.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import TOP, contents
from distributed import LocalCluster
from pipeline import STUDY, dvc, outcome, run, start
from ruamel.yaml import YAML

from feature_survival.artifacts import timeline
from feature_survival.grid import _client as grid_client
from feature_survival.grid import _devices as grid_devices

CACHES = [f"cache@tiny-{condition}" for condition in ("dense", "wanda-50")]
RUN = sorted(["prune@tiny", *CACHES])


def command(options: tuple[str, ...]) -> list[str]:
    return ["feature-survival", "grid", *(options or ("--workers", "2", "--threads", "1"))]


def grid(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(folder, *command(options))


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A grid under way, killed in the end."""
    with start(folder, *command(options)) as running:
        try:
            yield running
        finally:
            running.kill()


def lines_until(running: subprocess.Popen[str], *words: str) -> list[str]:
    """What a grid says, up to the first line with all of these words."""
    lines = []
    for line in running.stdout:
        lines.append(line)
        if all(word in line for word in words):
            return lines
    raise AssertionError("".join(lines))


def processes_of(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """All below a coordinator: its workers, their stages."""
    return psutil.Process(running.pid).children(recursive=True)


def stage_processes(below: psutil.Process, stage: str) -> list[psutil.Process]:
    """The process that a worker started for a stage, and all below it; it carries the stage's name."""
    found = []
    for process in below.children(recursive=True):
        with suppress(psutil.Error):  # ended meanwhile
            if stage in process.cmdline():
                found.append(process)
    (first,) = (process for process in found if process.parent() not in found)
    return [first, *first.children(recursive=True)]


def assert_gone(processes: list[psutil.Process]) -> None:
    assert psutil.wait_procs(processes, timeout=20)[1] == []


def ran(lines: list[str]) -> list[str]:
    """The stages that a grid says were run to their end and recorded."""
    return sorted(line.split()[0] for line in lines if " s on worker " in line)


@pytest.fixture(scope="session")
def parallel(fresh) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The project as two workers leave it, and what they said."""
    folder = fresh("parallel")
    return folder, grid(folder)


def test_two_workers_leave_what_dvc_repro_leaves_byte_for_byte(serial, parallel):
    folder, ended = parallel
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ran(ended.stdout.splitlines()) == RUN
    assert outcome(folder) == outcome(serial)


def test_the_time_line_has_every_stage_after_those_it_reads(parallel):
    rows = pd.read_csv(timeline(parallel[0])).set_index("stage")
    assert sorted(rows.index) == RUN and set(rows["worker"]) == {0, 1}
    assert (rows["start"] < rows["end"]).all()
    assert (rows.loc["prune@tiny", "end"] < rows.loc[CACHES, "start"]).all()


def test_a_second_run_does_nothing_and_a_changed_line_runs_what_depends_on_it(parallel, write_params):
    folder, _ = parallel
    before = outcome(folder)
    ended = grid(folder)
    assert ended.returncode == 0 and ended.stdout.startswith("0 stages run") and outcome(folder) == before
    write_params(folder, {**STUDY, "activations.sae_windows": 24})
    assert ran(grid(folder).stdout.splitlines()) == CACHES
    assert dvc(folder, "status") == "Data and pipelines are up to date.\n"


def test_a_killed_worker_costs_its_stage_and_a_killed_coordinator_what_was_running(serial, fresh):
    folder = fresh("killed")
    with started(folder) as running:
        lines_until(running, "prune@tiny", "begins")
        stage = stage_processes(psutil.Process(running.pid), "prune@tiny")
        stage[0].parent().kill()
        assert_gone(stage)
        lines = lines_until(running, "cache@tiny", " s on worker ")
        assert next(line.split()[0] for line in lines if "begins" in line) == "prune@tiny"  # again
        processes = processes_of(running)
        running.kill()
        assert_gone(processes)
    ended = grid(folder)
    assert ended.returncode == 0
    assert ran(lines) and not set(ran(lines)) & set(ran(ended.stdout.splitlines()))  # nothing recorded was run twice
    assert outcome(folder) == outcome(serial)


def shell_project(folder: Path, stages: dict[str, dict]) -> Path:
    """A DVC project of shell commands."""
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    dvc(folder, "init", "--quiet")
    shutil.copy(TOP / "params.yaml", folder)
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    return folder


WAIT = "touch waiting && while test ! -e go; do sleep .05; done && printenv OMP_NUM_THREADS > waited"
KILLS_ITS_WORKER = "echo try >> tries; kill -KILL $(cut -d ' ' -f 4 /proc/$PPID/stat); sleep 60"


def test_stages_that_fail_say_why_and_the_independent_rest_finishes(tmp_path):
    stages = {
        "first": {"cmd": "wc -c < seed > first", "deps": ["seed"], "outs": ["first"]},
        "second": {"cmd": "cp first second", "deps": ["first"], "outs": ["second"]},
        "input": {"cmd": "echo 'error: window: no' >&2; exit 2", "deps": ["first"], "outs": ["input"]},
        "crash": {"cmd": KILLS_ITS_WORKER, "deps": ["first"], "outs": ["crash"]},
        "silent": {"cmd": "true", "deps": ["first"], "outs": ["silent"]},
        "after": {"cmd": "cat input second > after", "deps": ["input", "second"], "outs": ["after"]},
    }
    folder = shell_project(tmp_path / "project", stages)
    (folder / "seed").write_text("one")
    ended = grid(folder)
    assert ended.returncode == 1
    assert ran(ended.stdout.splitlines()) == ["first", "second"]
    assert sorted(ended.stderr.splitlines()) == [
        "error: crash: its worker died 3 times",
        "error: input: window: no",
        "error: not run, as they depend on a failed one: after",
        "error: silent: ended without writing silent",
    ]
    assert (folder / "tries").read_text() == "try\n" * 3

    for repaired in ("crash", "silent"):
        stages[repaired]["cmd"] = f"touch {repaired}"
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    (folder / "seed").write_text("two")  # `first` is made again, and comes out as it was
    ended = grid(folder)
    assert ended.returncode == 2  # only by its input
    assert ran(ended.stdout.splitlines()) == ["crash", "first", "silent"]

    (folder / "seed").write_text("one")
    ended = grid(folder)
    assert ran(ended.stdout.splitlines()) == []  # DVC's run cache has it


def test_missing_outputs_are_computed_where_something_that_changed_needs_them(tmp_path):
    def copies(one: str, other: str) -> dict[str, object]:
        return {"cmd": f"cat {one} > {other}", "deps": [one], "outs": [{other: {"cache": False}}]}

    stages = {
        "first": copies("seed", "first"),
        "second": copies("first", "second"),
        "third": copies("second", "third"),
        "aside": copies("first", "aside"),
        "end": {"cmd": "cat third last > end", "deps": ["third", "last"], "outs": ["end"]},
    }
    folder = shell_project(tmp_path / "project", stages)
    for name in ("seed", "last"):
        (folder / name).write_text(name)
    assert len(ran(grid(folder, "--workers", "1").stdout.splitlines())) == 5
    left = contents(folder)
    for name in ("first", "second", "aside"):
        (folder / name).unlink()
    only_needed = ("--workers", "1", "--allow-missing")
    ended = grid(folder, *only_needed)
    assert ended.stdout == "all 5 stages are up to date; outputs of 3 are not here, and not needed\n"

    (folder / "third").unlink()
    (folder / "last").write_text("other")
    ended = grid(folder, *only_needed)
    assert ran(ended.stdout.splitlines()) == ["end", "first", "second", "third"]
    assert not (folder / "aside").exists() and (folder / "third").read_bytes() == left["third"]

    (folder / "seed").write_text("sown anew")  # what is downstream of a change is known once the change is made
    ended = grid(folder, *only_needed)
    assert ran(ended.stdout.splitlines()) == ["aside", "end", "first", "second", "third"]
    assert (folder / "aside").read_text() == "sown anew"
    ended = grid(folder, "--workers", "1", "--force")
    assert len(ran(ended.stdout.splitlines())) == 5 and ended.returncode == 0
    assert dvc(folder, "status") == "Data and pipelines are up to date.\n"


def test_an_interrupted_grid_ends_its_stages_and_keeps_what_was_done(tmp_path):
    stages = {
        "quick": {"cmd": "touch quick", "outs": ["quick"]},
        "slow": {"cmd": WAIT, "deps": ["quick"], "outs": ["waited"]},  # begins behind the other
    }
    folder = shell_project(tmp_path / "project", stages)
    with started(folder) as running:
        lines_until(running, "quick", " s on worker ")
        lines_until(running, "slow", "begins")
        second = grid(folder)
        assert second.returncode == 2 and "lock" in second.stderr and second.stderr.count("\n") == 1
        processes = processes_of(running)
        os.killpg(running.pid, signal.SIGINT)
        assert "interrupted; 1 stages" in running.stdout.read()
        assert running.wait() == 130
        assert_gone(processes)
    assert "quick:" in (folder / "dvc.lock").read_text() and "slow:" not in (folder / "dvc.lock").read_text()


def test_a_scheduler_s_workers_have_their_threads_and_stop_when_the_coordinator_is_gone(tmp_path):
    folder = shell_project(tmp_path / "project", {"slow": {"cmd": WAIT, "outs": ["waited"]}})
    with LocalCluster(
        n_workers=1, threads_per_worker=3, resources={"GPU": 1}, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as cluster:
        options = ("--scheduler", cluster.scheduler_address)
        with started(folder, *options) as running:
            lines_until(running, "slow", "begins")
            stage = stage_processes(psutil.Process(), "slow")
            running.kill()
        assert_gone(stage)
        (folder / "go").touch()
        assert grid(folder, *options).returncode == 0
        assert (folder / "waited").read_text() == "3\n"
        (folder / "go").unlink()
        (folder / "waited").unlink()
        shutil.rmtree(folder / ".dvc" / "cache")  # or the output would come from there
        with started(folder, *options) as running:
            lines_until(running, "slow", "begins")
            cluster.close()
            assert running.stdout.read() == (
                "error: the scheduler is gone; what was finished is recorded, `make grid` goes on from there\n"
            )
            assert running.wait() == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "WORKERS: at least 1 is needed, found 0"),
        (["--threads", "0"], "THREADS: at least 1 is needed, found 0"),
        (["--scheduler", "tcp://127.0.0.1:1"], "scheduler tcp://127.0.0.1:1: "),
        (["--scheduler", "here"], "scheduler here: missing port number"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(tmp_path, write_params, cli, options, message):
    write_params(tmp_path, {})
    ended = cli(tmp_path, "grid", *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"error: {message}") and ended.err.count("\n") == 1


def test_each_worker_has_a_gpu_of_its_own_where_there_are_any(monkeypatch, tmp_path, cli, write_params):
    write_params(tmp_path, {})
    monkeypatch.setattr("shutil.which", lambda _: "nvidia-smi")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    assert grid_devices("auto") == ["2", "3"]
    assert grid_devices("cpu") == []
    ended = cli(tmp_path, "grid", "--workers", "3")
    assert ended.code == 2 and "WORKERS: 3 asked, one GPU each; this machine has 2" in ended.err


def complain() -> None:
    os.write(2, b"the connection is closed")


def test_what_dask_says_on_a_worker_goes_to_a_file_not_among_the_grids_lines(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with grid_client("", 1, []) as client:
        client.run(complain)
    assert (tmp_path / ".dvc/tmp/grid/workers.log").read_text().startswith("the connection is closed")
    assert capfd.readouterr().err == ""
