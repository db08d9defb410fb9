"""What tests share: inputs of softmax variants, errors in units that know rounding, a mesh."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit_contracts.definitions import oracle
from attnkit_contracts.judging import units

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from attnkit import Mask, Variant

FOLDER = str(Path(__file__).parent)
if FOLDER not in sys.path:
    # by name, so that tests import what stands beside them
    sys.path.insert(0, FOLDER)

from tiny_models import EXACT, Exact, Spy  # noqa: E402

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class DrawInputs:
    """Draws query, key and value from a standard normal distribution."""

    def __call__(
        self,
        *,
        queries: int = 150,
        keys: int = 150,
        batch: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        width: int = 8,
        value_width: int = 8,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            "query": (batch, heads, queries, width),
            "key": (batch, kv_heads, keys, width),
            "value": (batch, kv_heads, keys, value_width),
        }
        return {
            name: torch.randn(*shape, generator=generator).to(dtype)
            for name, shape in shapes.items()
        }


class SoftmaxError:
    """Measures an implementation's largest error, of output and gradients, in analytic units.

    CONTRACTS.md, section 2: correct code stays under 0.82 forward; the gate is 2 for both.
    """

    def __call__(
        self,
        variant: Variant,
        implementation: str,
        tensors: dict[str, Tensor],
        *,
        mask: Mask,
        scale: float | None = None,
        softcap: float | None = None,
    ) -> float:
        leaves = {name: each.detach().requires_grad_() for name, each in tensors.items()}
        wide = {name: each.detach().double().requires_grad_() for name, each in tensors.items()}
        out = attnkit.attention(
            **leaves,  # type: ignore[arg-type]  # all of them are tensors
            mask=mask,
            scale=scale,
            softcap=softcap,
            variant=variant,
            implementation=implementation,
        )
        exact = oracle.softmax(
            **wide,  # type: ignore[arg-type]  # all of them are tensors
            mask=mask,
            scale=scale,
            softcap=softcap,
        )
        dtype = out.dtype
        generator = torch.Generator().manual_seed(99)
        grad_out = torch.randn(out.shape, generator=generator).to(dtype)
        grads = torch.autograd.grad(out, tuple(leaves.values()), grad_out)
        exact_grads = torch.autograd.grad(exact.out, tuple(wide.values()), grad_out.double())
        exact = oracle.Softmax(*(each.detach() for each in exact))
        factor = tensors["query"].shape[-1] ** -0.5 if scale is None else scale
        unit = units.analytic(exact, tensors["value"], dtype)
        gradient_units = units.analytic_gradients(exact, tensors, grad_out, factor, dtype)
        errors = [units.error(out, exact.out, unit)[0]]
        for name, grad, exact_grad in zip(leaves, grads, exact_grads, strict=True):
            errors.append(units.error(grad, exact_grad, gradient_units[name])[0])
        return max(errors)


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture
def draw_inputs() -> DrawInputs:
    return DrawInputs()


@pytest.fixture
def softmax_error() -> SoftmaxError:
    return SoftmaxError()


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Make a mesh of one process, to shard models on."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.fixture(params=EXACT, ids=lambda each: f"{each.variant}-{each.dtype}")
def exact(request: pytest.FixtureRequest) -> Exact:
    found: Exact = request.param
    return found


@pytest.fixture
def spy() -> Iterator[Any]:
    """Offer a correct variant ``spy`` that notes its calls; see `tiny_models.Spy`."""
    spy = Spy()
    with attnkit.register(spy.variant):
        yield spy
