"""The benchmarks run: on the CPU, at miniature shapes."""

from __future__ import annotations

import subprocess
import sys

from conftest import TOP


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
