"""The benchmarks run: on the CPU, at miniature shapes; what they conclude is held against planted times."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import TOP

BENCHMARKS = TOP / "benchmarks"
OWN = [file.stem for file in BENCHMARKS.glob("*.py")]


@pytest.fixture(scope="module")
def modules() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a benchmark's module as the scripts see each other; their short names are gone again afterwards."""
    from importlib import import_module

    before = {name: sys.modules.pop(name) for name in OWN if name in sys.modules}
    sys.path.insert(0, str(BENCHMARKS))
    yield import_module
    sys.path.remove(str(BENCHMARKS))
    for name in OWN:
        sys.modules.pop(name, None)
    sys.modules.update(before)


class Planted:
    """A clock that moves when a contender runs."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def contender(self, name: str, *takes: float) -> Callable[[], str]:
        """Warms up, then takes so long in each repetition."""
        ahead = [100.0, *takes]

        def run() -> str:
            self.now += ahead.pop(0)
            self.order += name
            return name

        return run


def test_contenders_take_turns_and_ratios_are_medians_within_a_repetition(
    modules: Callable[[str], ModuleType],
) -> None:
    race, clock, seen = modules("race"), Planted(), []
    case = race.Case(
        "stage",
        "case",
        clock.contender("o", 1.0, 2.0, 4.0),
        lambda *results: f"{seen.append(results)}" and "nothing",
        (race.Rival("peer", clock.contender("p", 3.0, 4.0, 20.0), 3.0),),
        race.Rival("floor", clock.contender("b", 0.5, 1.75, 2.0), 1.25),
        units=10,
        limit=1.5,
    )
    peer, bound, alone = race.race(case, 3, clock)
    assert seen == [("o", "p")] and clock.order == "opb" + "opb" + "bpo" + "opb"
    assert (peer.seconds, peer.rival_seconds, peer.ratio, peer.low, peer.high) == (2.0, 4.0, 3.0, 2.0, 5.0)
    assert peer.met and peer.rate == "5 tokens/s" and peer.difference == "nothing"
    assert (bound.rival, bound.ratio, bound.low, bound.high) == ("bound: floor", 0.5, 0.5, 0.875)
    assert bound.target == "≥ 80% (within 1.25x)" and bound.met is False
    assert alone.rival == "" and alone.ratio is None and alone.met is False


def test_results_that_differ_end_a_case_before_anything_is_timed(modules: Callable[[str], ModuleType]) -> None:
    race = modules("race")
    x, ran = torch.arange(4.0), []

    def same(ours: torch.Tensor, theirs: torch.Tensor) -> str:
        assert torch.equal(ours, theirs), "they differ"
        return ""

    def ours() -> torch.Tensor:
        ran.append("ours")
        return x * 2

    with pytest.raises(AssertionError, match="they differ"):
        race.race(race.Case("stage", "case", ours, same, (race.Rival("peer", lambda: x * 3),)), 3)
    assert ran == ["ours"]
    (row,) = race.race(race.Case("stage", "case", ours, same, (race.Rival("peer", lambda: x + x),)), 2)
    assert len(ran) == 4 and row.ratio > 0 and row.met is None


def test_a_contender_that_has_timed_itself_is_believed(modules: Callable[[str], ModuleType]) -> None:
    race = modules("race")
    case = race.Case("stage", "case", lambda: race.Seconds(2.0), lambda _: "", limit=3.0)
    (row,) = race.race(case, 1)
    assert row.seconds == 2.0 and row.met


def test_the_table_says_what_was_missed(modules: Callable[[str], ModuleType]) -> None:
    race = modules("race")
    row = race.Row("sae", "one", 2.0, "5 tokens/s", "peer", 5.0, 2.5, 2.4, 2.6, "≥ 3x", False, "FVU .1")
    bound = row._replace(rival="bound: top-k", ratio=0.5, low=0.4, high=0.6, target="", met=None)
    _, line, first, second = race.table([row, bound]).splitlines()
    assert line.count("|") == first.count("|") == second.count("|") == 11
    assert "| peer | 5 s | 2.50x | 2.40x–2.60x | ≥ 3x | **no** | FVU .1 |" in first  # noqa: RUF001
    assert "| 50% | 40%–60% |  |  |" in second  # noqa: RUF001


def test_the_page_names_the_machine(modules: Callable[[str], ModuleType]) -> None:
    bench, race = modules("bench"), modules("race")
    row = race.Row("sae", "one", 2.0, "", "", None, None, None, None, "< 3 s", True, "")
    page = bench.report(bench.machine(2), [row], "a table", 3)
    for expected in ("2 threads", "GiB", f"torch {torch.__version__}", "| < 3 s | yes |", "## Growth\n\na table"):
        assert expected in page


TWICE_64_MIB = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from race import extra_memory

tensors = []
def work():
    tensors.append(torch.ones(64 * 2**18))
    tensors.append(tensors.pop() + 1)
print(extra_memory(work))
"""


def test_memory_beyond_inputs_is_what_the_work_holds_at_most() -> None:
    words = [sys.executable, "-c", TWICE_64_MIB, str(BENCHMARKS)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # as its docstring asks
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert int(ended.stdout) == pytest.approx(128 * 2**20, rel=0.2)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_a_planted_power_law_is_found(modules: Callable[[str], ModuleType], power: float) -> None:
    sizes = 1, 2, 4, 8
    found = modules("growth").exponent(sizes, [3 * size**power for size in sizes])
    assert found == pytest.approx((power,) * 3)


def test_growth_is_said_to_be_worse_than_linear_only_where_it_is(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = modules("growth")
    times = {"tokens": [1.0, 2.0, 4.1], "seeds": [1.0, 4.0, 16.0], "width": [1.0, 4.0, 16.0]}
    curves = [growth.Curve("stage", along, (1, 2, 4), lambda *_: None, along != "width") for along in times]
    monkeypatch.setattr(growth, "least_seconds", lambda curve: times[curve.along])
    monkeypatch.setattr(growth, "memories", lambda curves, _: [[2**20] * 3, [2**25, 2**26, 2**27], [2**25] * 3])
    rows = [[cell.strip() for cell in line.split("|")] for line in growth.table(curves).splitlines()[2:]]
    assert [row[-2] for row in rows] == ["yes", "**no**", ""]
    assert [row[5] for row in rows] == ["1.02 (1.00 to 1.04)", "2.00 (2.00 to 2.00)", "2.00 (2.00 to 2.00)"]
    assert [row[7] for row in rows] == ["", "1.00 (1.00 to 1.00)", "0.00 (0.00 to 0.00)"]


def test_one_curve_is_measured_for_real(modules: Callable[[str], ModuleType]) -> None:
    growth = modules("growth")
    curve = growth.Curve("matching", "width", (512, 1024), lambda n, _: growth.matching(n), False)
    assert all(value > 0 for value in growth.least_seconds(curve))


def test_matching_and_causal_agree_with_their_peers(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    race, matching, causal = (modules(name) for name in ("race", "matching", "causal"))
    monkeypatch.setattr(matching, "memory", lambda rows, width: 2**20)
    monkeypatch.setattr(causal, "ABLATED", 2)
    monkeypatch.setattr(causal, "WINDOWS", 4)
    rows = race.race(matching.case(300, 16), 1)
    assert len(rows) == 2 and "the same pairs" in rows[0].difference
    rows = [row for case in causal.cases() for row in race.race(case, 1)]
    assert len(rows) == 1 and rows[0].difference.startswith("effects, ")


def test_caching_equals_sae_lens_with_either_kind_of_model(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    race, cache = modules("race"), modules("cache")
    monkeypatch.setattr(cache, "WINDOWS", 32)
    monkeypatch.setattr(cache, "SHARD", 32)
    monkeypatch.setattr(cache, "FAMILIES", ["gpt2"])
    rows = [row for case in cache.cases() for row in race.race(case, 1)]
    assert [row.rival.startswith("bound") for row in rows] == [False, False, True]


def test_training_equals_both_peers_on_planted_activations(
    modules: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    race, sae = modules("race"), modules("sae")
    monkeypatch.setattr(sae, "REAL", tmp_path)
    monkeypatch.setattr(sae, "SHARDS", 1)
    monkeypatch.setattr(sae, "ROWS", 8192)
    monkeypatch.setattr(sae, "SETTINGS", {**sae.SETTINGS, "batch_tokens": 1024, "expansion": 2})
    rows = race.race(next(sae.cases()), 1)
    assert len(rows) == 3 and "FVU" in rows[0].difference and "planted" in rows[0].case


def test_a_stage_that_is_none_is_refused_with_those_that_are() -> None:
    ended = subprocess.run(
        [sys.executable, BENCHMARKS / "bench.py", "--only", "sea"], cwd=TOP, capture_output=True, text=True
    )
    assert ended.returncode == 2 and "no stage 'sea'; known: prune, cache, sae" in ended.stderr


def test_the_throughput_benchmark_prints_a_rate_of_every_stage() -> None:
    options = ["--model", "nano-llama3", "--device", "cpu", "--windows", "16"]
    ended = subprocess.run(
        [sys.executable, TOP / "benchmarks" / "gpu.py", *options], cwd=TOP, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    title, header, *rows = ended.stdout.splitlines()
    assert "nano-llama3" in title and "tokens/s" in header
    assert [row.split(",")[0].split(" ")[0] for row in rows] == ["prune", "prune", "cache", "sae", *["metrics"] * 4]
    assert sum("-" in row.split()[-2] for row in rows) == 2  # of magnitude and of matching


def test_the_throughput_benchmark_refuses_an_absent_device_in_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, TOP / "benchmarks" / "gpu.py", "--device", "cuda:99"], cwd=TOP, capture_output=True, text=True
    )
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert "device: 'cuda:99' asked, this machine has" in ended.stderr
