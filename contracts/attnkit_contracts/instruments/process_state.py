"""What a process keeps for all of its code, so that whoever changes it changes it for everybody."""

from __future__ import annotations

import functools
import gc
import random
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch._C import _autograd
from torch.backends import cuda, mkldnn
from torch.nn import functional
from torch.utils import _device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    State = dict[str, Any]

KERNELS = ("flash", "mem_efficient", "cudnn", "math")
LIBRARIES = (mkldnn, cuda)
"""Those of matrix products that have a precision of their own."""

OWN_SEED = 2**32
"""Added to a seed it changes no number that is drawn, and shows whether somebody else seeds."""

PYTHON, DRAWN = "Python's random numbers", "torch's random numbers"

PATCHED = (functional, torch.Tensor, torch.nn.Module)
PRODUCTS = ("softmax", "matmul", "bmm", "einsum", "exp", "empty")
"""Whose functions are everybody's, and some of torch's own."""

COMPILERS = {"__init__", "__setstate__"}
"""What torch's compiler replaces when it first compiles a module."""


def _filters(now: list[Any]) -> None:
    # a list, declared as a sequence
    cast("list[Any]", warnings.filters)[:] = now


def _precision(now: tuple[str, ...]) -> None:
    torch.set_float32_matmul_precision(now[0])
    # torch's setter sets these as well, and to "ieee" where nothing was said before
    for library, own in zip(LIBRARIES, now[1:], strict=True):
        library.matmul.fp32_precision = own


def _deterministic(now: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(now[0], warn_only=now[1])


def _autocast(now: tuple[bool, bool]) -> None:
    torch.set_autocast_enabled("cpu", now[0])
    torch.set_autocast_cache_enabled(now[1])


def _kernels(now: tuple[bool, ...]) -> None:
    for name, enabled in zip(KERNELS, now, strict=True):
        getattr(cuda, f"enable_{name}_sdp")(enabled)


def _collecting(now: bool) -> None:
    (gc.enable if now else gc.disable)()


def _flushes() -> bool:
    """Return whether the processor takes numbers near 0 for 0."""
    return sys.float_info.min / 2 == 0.0


@functools.cache
def _public() -> tuple[tuple[Any, Mapping[str, Any], tuple[str, ...]], ...]:
    """Return whose functions everybody calls, where they are held, and their names."""
    # names that come later, of warnings that were told say, are no matter
    return tuple(
        (owner, vars(owner), tuple(name for name in vars(owner) if name not in COMPILERS))
        for owner in PATCHED
    )


def _functions() -> tuple[Any, ...]:
    held = (tuple(map(held.get, names)) for _, held, names in _public())
    return (*held, tuple(getattr(torch, name) for name in PRODUCTS))


def _put_functions(now: tuple[Any, ...]) -> None:
    named = [*((owner, names) for owner, _, names in _public()), (torch, PRODUCTS)]
    for (owner, names), functions in zip(named, now, strict=True):
        for name, before in zip(names, functions, strict=True):
            if vars(owner).get(name) is not before:
                setattr(owner, name, before)


QUICK: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "whether gradients are on": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "autocast": (
        lambda: (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        _autocast,
    ),
}
"""What is so quick to read that every call is looked at; and how it is set."""

FACTS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    **QUICK,
    # torch.get_default_device makes a tensor where none is set, and so cannot tell that from "cpu"
    "the default device": (lambda: _device.CURRENT_DEVICE, torch.set_default_device),
    "inference mode": (torch.is_inference_mode_enabled, lambda _: None),
    "deterministic algorithms": (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _deterministic,
    ),
    "the precision of products": (
        lambda: (
            torch.get_float32_matmul_precision(),
            *(library.matmul.fp32_precision for library in LIBRARIES),
        ),
        _precision,
    ),
    "whether numbers near 0 become 0": (_flushes, torch.set_flush_denormal),
    "oneDNN": (lambda: mkldnn.enabled, torch._C._set_mkldnn_enabled),
    "anomaly detection": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda now: torch.autograd.set_detect_anomaly(*now),
    ),
    "whether what backward needs may be packed": (
        _autograd._saved_tensors_hooks_is_enabled,  # type: ignore[attr-defined]  # undeclared
        lambda _: _autograd._saved_tensors_hooks_enable(),
    ),
    "how what backward needs is packed": (
        lambda: _autograd._top_saved_tensors_default_hooks(False),
        lambda _: _autograd._pop_saved_tensors_default_hooks(),
    ),
    PYTHON: (random.getstate, random.setstate),
    "the collection of garbage": (gc.isenabled, _collecting),
    "the filters of warnings": (lambda: list(warnings.filters), _filters),
    "which kernels of attention torch may use": (
        lambda: tuple(getattr(cuda, f"{name}_sdp_enabled")() for name in KERNELS),
        _kernels,
    ),
    "functions of torch": (_functions, _put_functions),
}
"""What can be told by comparing, and how it is put back."""


def process_state() -> State:
    """Return all of it, by what it is called."""
    found = {name: read() for name, (read, _) in FACTS.items()}
    found[DRAWN] = torch.get_rng_state()
    # torch leaves it untyped, and what it types asks whether there are GPUs, not whether any is
    # in use: to read the numbers of one that is not would start it
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # as said above
    found["the random numbers of GPUs"] = torch.cuda.get_rng_state_all() if started else []
    return found


def _alike(value: Any) -> Any:
    """Return what a value amounts to: torch's own setter writes "ieee" where nothing was said."""
    if isinstance(value, tuple) and "none" in value:
        return tuple("ieee" if each == "none" else each for each in value)
    return value


def changes(before: State) -> list[str]:
    """Return what differs from an earlier snapshot."""
    now = process_state()
    return [name for name, then in before.items() if not _same(then, now[name])]


def quick_state() -> State:
    """Return what is so quick to read that every call is looked at."""
    return {name: read() for name, (read, _) in QUICK.items()}


def put_back(before: State) -> list[str]:
    """Return what differs from an earlier snapshot, which is set again."""
    now = process_state()
    changed = [name for name, then in before.items() if not _same(then, now[name])]
    for name in changed:
        if name in FACTS:
            FACTS[name][1](before[name])
    torch.set_rng_state(before[DRAWN])
    return [name for name in changed if not _same(_alike(before[name]), _alike(now[name]))]


@contextmanager
def guarded(seed: int, *, draws: bool) -> Iterator[list[str]]:
    """Give what runs within random numbers of its own, and note what else it changes.

    What is noted is there when it has run, and everything is as before again. What draws may
    change random numbers, and not seed them.
    """
    changed: list[str] = []
    outer, asking, setting = torch.get_rng_state(), torch.get_num_threads, torch.set_num_threads
    # what is asked for, in vain; who leaves behind how many there are anyway is seen too, and who
    # puts back what was there has changed nothing
    asked = [asking() + 1]

    def ask(nthreads: int) -> None:
        asked.append(nthreads)

    torch.default_generator.manual_seed(seed + OWN_SEED)
    before = process_state()
    torch.get_num_threads = lambda: asked[-1]
    torch.set_num_threads = ask
    try:
        yield changed
    finally:
        torch.get_num_threads, torch.set_num_threads = asking, setting
        changed += ["the number of threads"] if asked[-1] != asked[0] else []
        seeded = torch.initial_seed() != seed + OWN_SEED
        found = put_back(before)
        if draws and not seeded:
            found = [name for name in found if name != DRAWN]
        changed += [name for name in found if name not in changed]
        torch.set_rng_state(outer)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list) and one and isinstance(one[0], torch.Tensor):
        return len(one) == len(other) and all(map(torch.equal, one, other))
    return bool(one == other)


@contextmanager
def unusual() -> Iterator[None]:
    """Change for a while what no shape, dtype or device depends on.

    Whoever sets one of these to a fixed value in every call is then seen in each of them, not in
    the first one alone.
    """
    before = process_state()
    strict, _ = before["deterministic algorithms"]
    seed = before[PYTHON][1][0]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        random.seed(seed)
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(mode=not strict, warn_only=True)
        try:
            yield
        finally:
            for name in ("deterministic algorithms", "the precision of products", PYTHON):
                FACTS[name][1](before[name])
