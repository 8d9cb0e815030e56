"""The plan's arithmetic, against small cases by hand, torch's own counter, real files, a real process's memory."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, TOP, VOCABULARY, Ended, entry, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from feature_survival.catalogue import Site
from feature_survival.config import Params, load
from feature_survival.forward import read_site
from feature_survival.metrics.disentanglement import prepare_interchange
from feature_survival.metrics.language import measure_splices
from feature_survival.plan import TOTAL, Row, estimate, warnings
from feature_survival.plan.devices import DEVICES, Work
from feature_survival.plan.memory import PAIRS, RUNTIME, peak
from feature_survival.plan.report import duration
from feature_survival.plan.shape import Shape, encoded
from feature_survival.plan.work import STAGES, Plan, condition_bytes, form_bytes, sae_bytes, splices
from feature_survival.recipes import Recipe
from feature_survival.schema import set_key, validate

Cli = Callable[..., Ended]
MEASURED = {"base": 7.6, "prune": 1.3, "cache": 5.9, "sae": 6.7, "metrics": 7.1, "variants": 12}  # minutes, two cores


@pytest.fixture(scope="module")
def params() -> Params:
    return load(TOP / "params.yaml")


def with_changes(params: Params, changes: dict[str, Any]) -> Params:
    content = params.model_dump()
    for key, value in changes.items():
        set_key(content, key, value, "test")
    return validate(content, "test", Params)


def test_work_adds_up_and_takes_as_long_as_its_parts() -> None:
    device = DEVICES["cpu-2"]
    work = Work(half=device.half, moved=device.bandwidth, read=5e8) * 2 + Work(steps=1 / device.step)
    assert work.flops == 2 * device.half
    assert device.seconds(work) == pytest.approx(4 / device.efficiency + 2 + 1)
    assert device.seconds(Work(), processes=3) == 3 * device.start


def test_a_tiny_llama_has_the_sizes_and_the_flops_that_a_hand_counts() -> None:
    shape = Shape.of(entry("LlamaForCausalLM"))
    assert shape.block_numel == 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    assert (shape.blocks, shape.width, shape.attended, shape.inner, shape.item) == (3, 32, 32, 48, 4)
    assert shape.parameters == VOCABULARY * 32 + 3 * (shape.block_numel + 2 * 32) + 32
    tokens, window = 20, 10
    block = 2 * shape.block_numel + 4 * window * 32
    assert shape.passed(tokens, window, 1).single == tokens * block
    assert shape.forward(tokens, window).flops == tokens * (3 * block + 2 * VOCABULARY * 32)
    assert encoded(32, 64, 5).flops == 2 * 32 * 64 * 5


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        (Recipe("magnitude", 0.5), 1),
        (Recipe("sparsegpt", 0.5), 1 + 0.5 * 16),
        (Recipe("rtn", bits=8, quantization_group=32), 8 + 16 / 32),
        (Recipe("rtn", bits=3, quantization_group=32), 4 + 16 / 32),
        (Recipe("svd", 0.5), 8),
    ],
    ids=lambda value: value.method if isinstance(value, Recipe) else str(value),
)
def test_a_form_takes_the_bits_that_its_definition_says(recipe: Recipe, bits: float) -> None:
    assert form_bytes(recipe, 256, 512) == pytest.approx(256 * 512 * bits / 8, rel=0.01)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_forward_pass_has_the_flops_that_torch_counts(architecture: str, tokens: torch.Tensor) -> None:
    model, shape = tiny(architecture), Shape.of(entry(architecture))
    model.set_attn_implementation("eager")  # whose products torch counts on the CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, use_cache=False)
    assert shape.forward(tokens.numel(), tokens.shape[1]).flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_reading_a_site_has_the_flops_that_torch_counts(tokens: torch.Tensor) -> None:
    model, shape = tiny("GPT2LMHeadModel"), Shape.of(entry("GPT2LMHeadModel"))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        read_site(model, Site("resid_post", 1), tokens)
    assert shape.passed(tokens.numel(), tokens.shape[1], 2).flops == counter.get_total_flops()


def test_splices_have_the_flops_that_torch_counts(tokens: torch.Tensor) -> None:
    model, shape = tiny("LlamaForCausalLM"), Shape.of(entry("LlamaForCausalLM"))
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        measure_splices(model, Site("resid_post", 1), {0: torch.zeros_like, 1: torch.ones_like}, tokens, 2)
    planned = splices(shape, Site("resid_post", 1), tokens.numel(), tokens.shape[1], saes=1).flops
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.02)


def stored(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


def test_the_disk_planned_is_what_the_stages_leave(project: Path, cli: Cli) -> None:
    for command in (["prune", "tiny"], ["cache", "tiny", "dense"], ["sae", "tiny", "dense"]):
        assert cli(project, *command).code == 0
    plan = Plan.of(load(project / "params.yaml"), "tiny")
    artifacts, headers = project / "artifacts" / "tiny", 0.05
    asked = plan.params.activations
    for condition, recipe in plan.conditions().items():
        found = stored(artifacts / "prune" / condition, "weights.safetensors")
        with (artifacts / "prune" / condition / "weights.safetensors").open("rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        assert found - header == pytest.approx(condition_bytes(plan, recipe), rel=headers), condition
    shards = 2 * (asked.sae_windows + asked.evaluation_windows) * (plan.params.window - 1) * 32
    assert plan.stage("cache").kept == shards * len(plan.params.study.conditions)
    assert stored(artifacts / "dense" / "cache", "*-0*.safetensors") == pytest.approx(shards, rel=headers)
    tensors = artifacts / "dense" / "sae" / "init0-data0"
    header = 0
    for file in tensors.glob("*.safetensors"):
        header += 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert stored(tensors, "*.safetensors") - header == pytest.approx(sae_bytes(32, 64), rel=headers)


def test_the_default_grid_takes_about_as_long_as_it_took(params: Params) -> None:
    rows = estimate(params, [], "cpu-2")
    for stage, minutes in MEASURED.items():
        planned = sum(row.seconds for row in rows if row.stage == stage) / 60
        assert minutes / 1.5 < planned < minutes * 1.5, stage


def test_the_grid_is_planned_as_configured_and_totals_are_sums(params: Params) -> None:
    rows = estimate(params, [], "cpu-2", price=1.0)
    stages = {name: [row.stage for row in rows if row.model == name] for name in params.study.bases}
    assert stages["mini-gemma2"] == [*STAGES, TOTAL]
    assert "variants" not in stages["mini-gemma3"]
    assert stages["mini-gpt2"] == ["base", "prune", "variants", TOTAL]
    *parts, whole = (row for row in rows if row.model == "mini-gemma2")
    assert whole.flops == sum(row.flops for row in parts)
    assert whole.device_memory == max(row.device_memory for row in parts)
    assert whole.cost == pytest.approx(whole.seconds / 3600)


def test_every_model_of_the_catalogue_is_planned_without_a_network(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    rows = estimate(params, list(params.models), "h100", price=2.0)
    assert {row.model for row in rows} == set(params.models)
    assert all(row.seconds > 0 and row.host_memory > 0 for row in rows)
    assert all(row.seconds < 48 * 3600 for row in rows)


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_plans_every_stage(params: Params, device: str) -> None:
    rows = estimate(params, ["nano-llama3"], device)
    assert [row.stage for row in rows] == [*STAGES, TOTAL]
    assert all(row.seconds > 0 for row in rows)


TOKENS = ["prune.calibration_windows", "activations.sae_windows", "activations.evaluation_windows",
          "variants.sae_windows", "variants.evaluation_windows"]  # fmt: skip


@pytest.fixture(scope="module")
def nano(params: Params) -> Plan:
    return Plan.of(params, "nano-llama3")


def figures(plan: Plan, stage: str, device: str) -> dict[str, float]:
    work, kept, processes = plan.stage(stage)
    held = peak(plan, stage, DEVICES[device])
    parts = {"flops": work.flops, "read": work.read, "written": work.written, "kept": kept}
    memory = {"device": held.device, "host": held.host}
    return {**parts, **memory, "seconds": DEVICES[device].seconds(work, processes)}


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(TOKENS), more=st.integers(1, 5000), device=st.sampled_from(sorted(DEVICES)))
def test_more_tokens_are_never_cheaper(nano: Plan, key: str, more: int, device: str) -> None:
    section, name = key.split(".")
    changed = with_changes(nano.params, {key: getattr(getattr(nano.params, section), name) + more})
    for stage in STAGES:
        before, after = (figures(plan, stage, device) for plan in (nano, nano._replace(params=changed)))
        for figure, value in before.items():
            assert after[figure] >= value, (stage, figure)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(st.sampled_from(["wanda-70", "rtn-8", "svd-50", "sparsegpt-2of4", "random-50"]), min_size=1))
def test_more_conditions_never_need_less_disk(nano: Plan, names: set[str]) -> None:
    changed = with_changes(nano.params, {"study.conditions": [*nano.params.study.conditions, *sorted(names)]})
    for stage in STAGES:
        before, after = (figures(plan, stage, "cpu-2") for plan in (nano, nano._replace(params=changed)))
        assert after["kept"] >= before["kept"]
        assert after["seconds"] >= before["seconds"]


def test_what_does_not_fit_is_named_with_the_setting_to_lower(params: Params) -> None:
    lines = warnings(estimate(params, ["gemma-2-2b"], "l4"), "l4")
    assert any(re.fullmatch(r"gemma-2-2b variants: .* GiB, l4 has 22; lower variants.probe_windows", x) for x in lines)
    assert not warnings(estimate(params, [], "cpu-2"), "cpu-2")


def test_hidden_states_in_the_host_s_memory_leave_the_device_s(params: Params) -> None:
    on_device, on_host = (
        peak(Plan.of(with_changes(params, {"models.gpt2.budget": {"prune.hidden_states": where}}), "gpt2"), "prune",
             DEVICES["h100"])
        for where in ("device", "host")
    )  # fmt: skip
    assert on_host.device < on_device.device
    assert on_host.host >= on_device.host


def test_durations_are_told_in_the_unit_that_fits() -> None:
    assert [duration(s) for s in (90, 7200, 86400 * 3)] == ["1.5 min", "2.0 h", "3.0 d"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt3"], "--models: unknown name 'gpt3'; did you mean 'gpt2'?"),
        (["--device", "h10"], "--device: unknown name 'h10'; did you mean 'h100'?"),
        (["--price", "-1"], "--price: -1 USD an hour; allowed: 0 or more"),
        (["--price", "nan"], "--price: nan USD an hour; allowed: 0 or more"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line(cli: Cli, arguments: list[str], message: str) -> None:
    ended = cli(TOP, "plan", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_the_tables_are_legible_at_100_columns_and_json_says_the_same(cli: Cli) -> None:
    ended = cli(TOP, "plan", "--models", "gpt2, gemma-2-2b", "--device", "l4", "--price", "0.8")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 100
    assert "…" not in ended.out
    for text in ("gemma-2-2b", "variants", "all", "an assumption", "Too large:"):
        assert text in ended.out
    said = json.loads(cli(TOP, "plan", "--models", "gpt2,gemma-2-2b", "--device", "l4", "--json").out)
    assert [Row(**row).stage for row in said["rows"]] == [*STAGES, TOTAL] * 2
    assert said["rows"][0]["cost"] is None
    assert said["too_large"]


def test_the_table_of_the_paper_scale_is_what_the_plan_says(params: Params) -> None:
    (section,) = re.findall(r"^\| model \| GPU memory.*?\n\n", (TOP / "REPRODUCE.md").read_text(), re.M | re.S)
    stated = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.strip().splitlines()[2:]]
    assert [row[0] for row in stated] == ["gpt2", "gemma-3-1b", "llama-3.2-1b", "gemma-2-2b"]
    totals = [row for row in estimate(params, [row[0] for row in stated], "h100", 2.5) if row.stage == TOTAL]
    for row, (_, *numbers) in zip(totals, stated, strict=True):
        planned = [row.device_memory / 2**30, row.host_memory / 2**30, row.kept / 1e9, row.seconds / 3600, row.cost]
        assert [float(number) for number in numbers] == [
            round(value or 0, digits) for value, digits in zip(planned, (1, 1, 0, 1, 2), strict=True)
        ]


def test_as_many_pairs_are_planned_as_are_drawn() -> None:
    assert signature(prepare_interchange).parameters["pairs"].default == PAIRS


def test_a_stage_holds_as_much_memory_as_planned(tmp_path: Path) -> None:
    """Four blocks of 16.8M parameters and their embedding, in a process of its own; 300M: `benchmarks/memory.py`."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", TOP / "benchmarks" / "memory.py")
    assert spec
    assert spec.loader
    benchmark = importlib.util.module_from_spec(spec)
    sys.modules["memory_benchmark"] = benchmark
    spec.loader.exec_module(benchmark)
    benchmark.make_project(tmp_path, 4)
    benchmark.write_params(tmp_path, 4, "float32", "magnitude-50", "device")
    plan = Plan.of(load(tmp_path / "params.yaml"), benchmark.MODEL)
    found = benchmark.measure(tmp_path, "prune", benchmark.MODEL) - RUNTIME
    assert peak(plan, "prune", DEVICES["cpu-2"]).host - RUNTIME == pytest.approx(found, rel=0.2)
