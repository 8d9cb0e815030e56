"""How a stage is started: heavy imports, determinism, memory, the device; and what is said where memory is short."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from feature_survival.config import Params
from feature_survival.schema import InputError

# What takes the most memory in a stage, and may be less without another result, or with one to the user's liking.
LOWER = {
    "base": "weights.training.batch_windows of the model",
    "prune": "prune.batch_windows, or set prune.hidden_states: host",
    "cache": "activations.batch_windows or activations.shard_windows",
    "sae": "sae.batch_tokens or sae.expansion",
    "metrics": "activations.batch_windows or sae.expansion",
    "contexts": "report.features or sae.expansion",
    "release": "sae.expansion",
    "variants": "activations.batch_windows, variants.probe_windows or sae.expansion",
}


# Where tensors as large as weights, or caches of many windows, come and go: kept, they would be as much again. They are
# returned from so many bytes on: smaller ones do not show in the peak, and the system clears every page that it gives.
RETURNED = {"prune": 2**23, "variants": 2**25}


@contextmanager
def uncollected() -> Iterator[None]:
    """Around imports and short work: what they make stays, and a seventh of their time went to searching it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def deterministic() -> None:
    """Same inputs, same bytes: called before any computing."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    # As torch.use_deterministic_algorithms(True), which also imports the compiler to tell it: more than a second.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_memory() -> None:
    """Have the C library keep up to 2 GB of freed memory for the next tensors, where it is glibc.

    By itself it returns every large tensor to the system and fetches, page by page, the next: a third of the CPU time
    of stages whose tensors are tens of megabytes. Numbers do not depend on it.
    """
    _set_allocator({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1})


def return_memory(size: int) -> None:
    """Have the C library return every tensor of so many bytes and more as soon as it is freed, where it is glibc.

    By itself it raises that bound to 32 MiB by and by, and lays the rest in one heap: masks, which stay, between
    temporaries, which go, with places between them that are too short for the next.
    """
    _set_allocator({MMAP_THRESHOLD: size})


def _set_allocator(options: dict[int, int]) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for option, value in options.items():
        mallopt(option, value)


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """InputError where memory runs out in the block, in one line that says what to do about it."""
    from feature_survival.models import compute_device, is_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(f"{what}: out of memory on {compute_device()}; {remedy}") from None


@contextmanager
def computing(what: str, device: str, remedy: str, returned: int | None = None) -> Iterator[None]:
    """Around all that computes: the same bytes every time, freed memory kept or, from so many bytes on, returned, the
    device chosen, and `enough_memory`."""
    from feature_survival.models import use_device

    deterministic()
    if returned is None:
        keep_memory()
    else:
        return_memory(returned)
    use_device(device)
    with enough_memory(what, remedy):
        yield


def run_stage(stage: str, model: str, params: Params, *where: object) -> None:
    """Run a stage on what there is of a model, once its names are known to be right."""
    with uncollected():
        run = import_module(f"feature_survival.stages.{stage}").run
    place = f" (models.{model}.budget)" if params.model(model).budget else ""
    with computing(f"stage {stage}", params.device, f"lower {LOWER[stage]}{place}", RETURNED.get(stage)):
        run(params, *where)
