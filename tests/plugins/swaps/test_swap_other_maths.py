"""A swap is judged by its own mathematics, whatever that is, and by the dtype that it runs in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnkit
from attnkit.errors import VerificationError
from attnkit.masks import Sizes
from attnkit.reference import softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

BASE = attnkit.get_variant("multi_head")
REFERENCE = BASE.implementations[0]
PROMISES = attnkit.Promises(
    causal=True,
    bidirectional=True,
    cross=True,
    masks=("padding", "dense"),
    scale=True,
    gradients=True,
    dtypes=("float64", "float32"),
    devices=("cpu",),
)


def other(name: str, reference: Callable[..., Tensor], fast: Callable[..., Tensor]) -> Any:
    """A variant of other mathematics, with an implementation beside its definition."""
    return replace(
        BASE,
        name=name,
        relation="different",
        promises=PROMISES,
        implementations=(
            replace(REFERENCE, function=reference, promises=PROMISES),
            replace(REFERENCE, name="fast", function=fast, promises=PROMISES, cost=lambda _: 0.0),
        ),
    )


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()


def difference(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """The difference of two attentions, in the dtype of the query; its weights are negative too."""
    half = query.shape[-1] // 2
    sizes = Sizes(*query.shape[:3], key.shape[2])
    seen = given["mask"].to_bool(sizes, query.device)

    def weights(q: Tensor, k: Tensor) -> Tensor:
        logits = (given["scale"] * q @ k.mT).masked_fill(~seen, -1e30)
        return logits.softmax(-1).masked_fill(~seen, 0.0)

    first = weights(query[..., :half], key[..., :half])
    return (first - weights(query[..., half:], key[..., half:])) @ value


def difference_in_float64(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    return difference(query.double(), key.double(), value.double(), **given).to(query.dtype)


def test_correct_differential_attention_is_accepted() -> None:
    variant = other("differential", difference_in_float64, difference)
    with attnkit.register(variant):
        (site,) = attnkit.swap(encoder(), "differential", accept="different").receipt.sites
    assert site.implementations == ("differential.fast",)
    assert site.error_after <= 1.0


def test_a_constant_is_no_implementation_of_weights_that_are_negative() -> None:
    def negative(*tensors: Tensor, **given: Any) -> Tensor:
        return -softmax(*tensors, **given)

    variant = other("negative", negative, lambda query, *_, **__: torch.full_like(query, 5.0))
    with attnkit.register(variant), pytest.raises(VerificationError, match="fast is off"):
        attnkit.swap(encoder(), "negative", accept="different")


def test_one_head_of_other_mathematics_a_hundredth_too_large_is_caught() -> None:
    def off(*tensors: Tensor, **given: Any) -> Tensor:
        out = difference(*tensors, **given)
        out[:, 1] *= 1.01
        return out

    variant = other("off", difference_in_float64, off)
    with attnkit.register(variant), pytest.raises(VerificationError, match="fast is off by"):
        attnkit.swap(encoder(), "off", accept="different")


class Own(torch.nn.Module):
    """A layer of one's own, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(16, 48, dtype=torch.float64)

    def heads(self, x: Tensor) -> Tensor:
        return self.projection(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(*self.heads(x))


class Narrow(Own):
    """One whose softmax is rounded to float32, as many libraries' is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.heads(x))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        logits = query @ key.mT * query.shape[-1] ** -0.5
        return logits.softmax(-1, dtype=torch.float32).to(query.dtype) @ value


def in_float32(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    narrow = (each.float() for each in (query, key, value))
    return scaled_dot_product_attention(*narrow, scale=given["scale"]).to(query.dtype)


def test_in_a_float64_model_what_computes_in_float32_is_not_exact() -> None:
    own = replace(REFERENCE, name="own", function=in_float32)
    variant = replace(BASE, name="low", implementations=(REFERENCE, own))
    model, x = Own().eval(), torch.randn(2, 12, 16, dtype=torch.float64)
    with pytest.raises(VerificationError, match="own is off by"):
        attnkit.swap(model, {"*": {"variant": variant, "implementation": "own"}}, sample={"x": x})


def test_a_float64_model_that_rounds_its_own_softmax_takes_what_is_better() -> None:
    attnkit.declare(Narrow, method="attend", query="query", key="key", value="value")
    model, x = Narrow().eval(), torch.randn(2, 12, 16, dtype=torch.float64)
    (site,) = attnkit.swap(model, "multi_head", sample={"x": x}).receipt.sites
    assert site.error_before is not None
    assert site.error_before > 1e3
    assert site.error_after <= 1.0
