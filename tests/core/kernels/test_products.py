"""Float32 products by oneDNN: exact where they are used, and torch's setting put back."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import torch

import attnkit
from attnkit.kernels import onednn as products
from attnkit.kernels.onednn import fast_products, stays_exact

if TYPE_CHECKING:
    from collections.abc import Iterator

MATMUL = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    assert MATMUL.fp32_precision == "none"
    yield
    MATMUL.fp32_precision = "none"


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as a machine whose oneDNN keeps float32; the arithmetic is not looked at."""
    monkeypatch.setattr(products, "stays_exact", lambda: True)


def test_products_are_as_close_to_float64_as_plain_ones() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(8, 128, 512), torch.randn(8, 512, 64)
    with fast_products():
        found = left @ right
    true = left.double() @ right.double()
    # a float32 sum of 512 terms: each partial sum rounded once, by half a unit of 2 ** -23
    bound = 512 * 2.0**-24 * (left.double().abs() @ right.double().abs())
    assert ((found - true).abs() <= bound).all()


def test_measuring_leaves_the_setting_alone() -> None:
    stays_exact.cache_clear()
    stays_exact()
    assert MATMUL.fp32_precision == "none"


def test_the_gain_is_a_ratio_of_times_and_leaves_the_setting_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "stays_exact", lambda: True)
    took = {"none": 3.0, "bf16": 1.5}
    monkeypatch.setattr(products, "_seconds", lambda *_: took[MATMUL.fp32_precision])
    assert products.gain.__wrapped__() == 2.0
    assert MATMUL.fp32_precision == "none"


def test_a_bfloat16_product_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_bfloat16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.matmul(left.bfloat16(), right.bfloat16()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", in_bfloat16)
    assert not products._is_exact(1, 4, 64, 4)


@pytest.mark.usefixtures("exact")
def test_the_setting_is_on_inside_and_put_back_after_nesting_and_errors() -> None:
    def nest() -> None:
        with fast_products():
            with fast_products():
                assert MATMUL.fp32_precision == "bf16"
            assert MATMUL.fp32_precision == "bf16"
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        nest()
    assert MATMUL.fp32_precision == "none"


@pytest.mark.usefixtures("exact")
def test_threads_that_overlap_leave_the_setting_as_it_was() -> None:
    first_in, second_in = threading.Event(), threading.Event()

    def first() -> None:
        with fast_products():
            first_in.set()
            second_in.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with fast_products():
        second_in.set()
        thread.join()
        assert MATMUL.fp32_precision == "bf16"
    assert MATMUL.fp32_precision == "none"


@pytest.mark.usefixtures("exact")
def test_a_user_who_asks_for_ieee_gets_it() -> None:
    MATMUL.fp32_precision = "ieee"
    with fast_products():
        assert MATMUL.fp32_precision == "ieee"
    assert MATMUL.fp32_precision == "ieee"


def test_nothing_is_switched_where_it_would_not_be_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "stays_exact", lambda: False)
    with fast_products():
        assert MATMUL.fp32_precision == "none"


def test_what_is_measured_once_does_not_depend_on_defaults_that_the_caller_has_set() -> None:
    products.stays_exact.cache_clear()
    products.gain.cache_clear()
    expected = products._is_exact(4, 128, 64, 512)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
            assert products._is_exact(4, 128, 64, 512) == expected
            assert products._filled(1.0, 2).dtype == torch.float32
            assert products.gain() > 0.0
            query = torch.randn(1, 4, 64, 16, device="cpu", dtype=torch.float32)
            assert (
                attnkit.attention(query, query, query, mask=attnkit.causal()).device.type == "cpu"
            )
    finally:
        torch.set_default_dtype(torch.float32)
