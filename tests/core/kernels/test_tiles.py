"""Tiles of softmax attention: the definition, however they are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import attnkit
from attnkit import reference
from attnkit.kernels import tiles
from attnkit.kernels.tiles import Rules

if TYPE_CHECKING:
    from torch import Tensor

MASKS = {
    "full": attnkit.full(),
    "causal": attnkit.causal(),
    "window": attnkit.sliding_window(5),
    "causal window": attnkit.causal() & attnkit.sliding_window(30),
    "union": attnkit.causal() & (attnkit.sliding_window(4) | attnkit.padding([2, 35])),
}


@pytest.mark.parametrize("rows", [9, 64])
@pytest.mark.parametrize("elements", [None, 1])
@pytest.mark.parametrize(("queries", "keys"), [(20, 300), (150, 40)])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_cut_changes_neither_outputs_nor_gradients(
    mask: attnkit.Mask, queries: int, keys: int, elements: int | None, rows: int
) -> None:
    torch.manual_seed(0)
    shapes = (2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 3), (4, 1, keys), (4,)
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    with torch.no_grad():
        given[4][1] = float("-inf")  # a head without a sink: rows that see nothing are 0
    query, key, value, bias, sinks = given
    found = tiles.attend(query, key, value, bias, sinks, Rules(mask, 0.5, 20.0, rows, elements))
    wanted = reference.softmax(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        scale=0.5,
        softcap=20.0,
        sinks=sinks,
        dropout_p=0.0,
    )
    seed = torch.randn_like(wanted)
    pairs = zip(
        (found, *torch.autograd.grad(found, given, seed)),
        (wanted, *torch.autograd.grad(wanted, given, seed)),
        strict=True,
    )
    for new, old in pairs:
        # float64 on both sides, sums in another order
        assert torch.allclose(new, old.nan_to_num(), rtol=1e-11, atol=1e-11)


def test_edge_of_a_window_is_evaluated_once_for_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    mask = attnkit.sliding_window(8)
    whole = mask.tile

    def tile(rows: tuple[int, int], *given: Any) -> Tensor:
        asked.append(rows)
        return whole(rows, *given)

    monkeypatch.setattr(mask, "tile", tile)
    query = torch.randn(1, 1, 256, 4)
    tiles.forward(query, query, query, None, None, Rules(mask, 0.5, None, rows=16))
    # the first tile begins at the first key, the last ends at the last; an edge on either side
    assert 2 <= len(asked) <= 4 < 256 // 16
