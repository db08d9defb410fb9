"""What a process keeps for all of its code, so that whoever changes it changes it for everybody."""

from __future__ import annotations

import random
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch.backends import cuda, mkldnn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = ("flash", "mem_efficient", "cudnn", "math")
LIBRARIES = (mkldnn, cuda)
"""Those of matrix products that have a precision of their own."""


def process_state() -> dict[str, object]:
    """Return all of it, by what it is called; two snapshots are equal iff nothing changed."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "whether gradients are on": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the precision of products": (
            torch.get_float32_matmul_precision(),
            *(library.matmul.fp32_precision for library in LIBRARIES),
        ),
        "anomaly detection": torch.is_anomaly_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "torch's random numbers": torch.get_rng_state().tolist(),
        "the random numbers of GPUs": (
            [each.tolist() for each in torch.cuda.get_rng_state_all()]
            # torch leaves it untyped, and what it types asks whether there are GPUs, not whether
            # any is in use: to read the numbers of one that is not would start it
            if torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # as said above
            else []
        ),
        "Python's random numbers": random.getstate(),
        "the filters of warnings": list(warnings.filters),
        "which kernels of attention torch may use": [
            name for name in KERNELS if getattr(cuda, f"{name}_sdp_enabled")()
        ],
        "torch.nn.functional.scaled_dot_product_attention": id(
            functional.scaled_dot_product_attention
        ),
        "torch.softmax": id(torch.softmax),
        "torch.matmul": id(torch.matmul),
        "torch.Tensor.__getitem__": id(torch.Tensor.__getitem__),
        "torch.nn.Module.__call__": id(torch.nn.Module.__call__),
    }


def changes(before: dict[str, object]) -> list[str]:
    """Return what differs from an earlier snapshot."""
    return [name for name, now in process_state().items() if before[name] != now]


@contextmanager
def unusual() -> Iterator[None]:
    """Change for a while what no shape, dtype or device depends on.

    Whoever sets one of these to a fixed value in every call is then seen in each of them, not in
    the first one alone.
    """
    precision = torch.get_float32_matmul_precision()
    # torch's setter sets these as well, and to "ieee" where nothing was said before
    own = [library.matmul.fp32_precision for library in LIBRARIES]
    strict = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    python = random.getstate()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        random.seed(python[1][0])
        torch.manual_seed(python[1][0])
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(mode=not strict, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode=strict, warn_only=warned)
            torch.set_float32_matmul_precision(precision)
            for library, before in zip(LIBRARIES, own, strict=True):
                library.matmul.fp32_precision = before
            random.setstate(python)
