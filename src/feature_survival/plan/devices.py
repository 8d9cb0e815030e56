"""Devices by name, and how long work takes on one. Peaks are the makers' data sheets, dense, without sparsity."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import NamedTuple

GB, GIB = 1e9, 2**30
DISK = 5e8  # bytes a second, of disk and download alike: an assumption


@dataclass(frozen=True)
class Work:
    """What is to be done. FLOPs: a multiply-add is two."""

    half: float = 0.0  # FLOPs of matrix products in bfloat16 or float16
    single: float = 0.0  # in float32 (no TF32: torch leaves it off)
    double: float = 0.0  # in float64
    factored: float = 0.0  # FLOPs of SVDs and eigenvalues, float64: bound by their sequential part
    moved: float = 0.0  # bytes through device memory, outside of matrix products
    read: float = 0.0  # bytes from disk
    written: float = 0.0  # bytes to disk
    steps: float = 0.0  # of an optimiser, each some 200 small operations
    host: float = 0.0  # seconds on one core of the host, whatever the device

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(part * times for part in astuple(self)))

    @property
    def flops(self) -> float:
        """All FLOPs."""
        return self.half + self.single + self.double + self.factored


class Device(NamedTuple):
    """A machine's compute device: peaks, and the share of them that is taken to be reached."""

    half: float  # peak FLOP/s in bfloat16
    single: float  # in float32
    double: float  # in float64
    bandwidth: float  # bytes/s of its memory
    memory: float  # bytes
    efficiency: float  # share of all these peaks that is sustained
    factored: float  # FLOP/s that factorizations sustain
    step: float  # seconds that the small operations of an optimiser's step take
    start: float  # seconds until a stage's process computes
    is_host: bool = False  # its memory is the host's

    def seconds(self, work: Work, processes: float = 0) -> float:
        """How long the work takes: parts follow one another, none overlaps."""
        computed = work.half / self.half + work.single / self.single + work.double / self.double
        moved = work.moved / self.bandwidth
        factored = work.factored / self.factored
        disk = (work.read + work.written) / DISK
        return (
            (computed + moved) / self.efficiency
            + factored
            + disk
            + work.steps * self.step
            + work.host
            + (processes * self.start)
        )


def _gpu(half: float, single: float, double: float, bandwidth: float, memory: float) -> Device:
    """Peaks in TFLOP/s, GB/s and GB. What is sustained of them is an assumption, measured on none: 30%, of
    factorizations 20% of float64's peak and 0.5 TFLOP/s at most; 5 ms a step, 15 s a process."""
    factored = min(0.5, 0.2 * double) * 1e12
    return Device(half * 1e12, single * 1e12, double * 1e12, bandwidth * GB, memory * GB, 0.3, factored, 5e-3, 15.0)


# cpu-2 is calibrated: two cores with AVX-512, on which single stages, scaled to the default grid, took 7.6 (base), 1.3
# (prune), 5.9 (cache), 6.7 (sae), 7.1 (metrics) and 12 minutes (variants). The plan says 9.5, 1.6, 6.0, 7.1, 9.1
# and 15.6.
DEVICES: dict[str, Device] = {
    "h200": _gpu(989, 67, 34, 4800, 141),
    "h100": _gpu(989, 67, 34, 3350, 80),
    "a100-80": _gpu(312, 19.5, 9.7, 2039, 80),
    "l4": _gpu(121, 30.3, 0.47, 300, 24),
    "rtx-4090": _gpu(165, 82.6, 1.29, 1008, 24),
    "cpu-2": Device(400e9, 200e9, 100e9, 40 * GB, 24 * GIB, 0.6, 10e9, 2e-3, 2.7, is_host=True),
}
