"""A mixture of experts with weights of its own names is judged by what needs no definition."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import attnkit
import attnkit_contracts
from attnkit.errors import UnsupportedError
from attnkit.promises import Promises
from attnkit_contracts.definitions.oracle import real_tokens
from attnkit_plugins.feedforward.moe import VARIANT as MOE

if TYPE_CHECKING:
    from attnkit.interface import Variant
    from attnkit_contracts.reports.records import Record


class Config(attnkit.LayerConfig):
    """Sizes of a mixture."""

    num_experts: int = 4
    hidden_dim: int = 24


class Strange(nn.Module):
    """Two of several networks with biases and GELU; the gate of each is a sigmoid."""

    mistake = ""

    def __init__(self, config: Config, *, variant: Variant, device: Any = None, dtype: Any = None):
        super().__init__()
        width, hidden = config.embed_dim, config.hidden_dim
        self.config, self.variant = config, variant
        where = {"device": device, "dtype": dtype}
        self.gate = nn.Linear(width, config.num_experts, **where)
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden, **where), nn.GELU(), nn.Linear(hidden, width, **where)
            )
            for _ in range(config.num_experts)
        )

    def forward(self, x: torch.Tensor, *, mask: Any = attnkit.full(), state: Any = None) -> Any:
        if state is not None or set(mask.parts) - {"padding"}:
            raise UnsupportedError(f"strange: takes no state and no {', '.join(mask.parts)}")
        keep = real_tokens(mask, *x.shape[:2], x.device)[..., None]
        x = torch.where(keep, x, 0.0)
        given = x + 1e-3 * x.mean(1, keepdim=True) if self.mistake == "mixed" else x
        shares = self.gate(given).sigmoid()  # (B, L, E)
        chosen = shares.topk(2).indices
        shares = shares * torch.zeros_like(shares).scatter(-1, chosen, 1.0)
        y = sum(shares[..., [e]] * each(given) for e, each in enumerate(self.networks))
        return y if self.mistake == "padding" else torch.where(keep, y, 0.0)


PROMISES = Promises(
    causal=True,
    bidirectional=True,
    masks=("padding",),
    gradients=True,
    dtypes=("float32",),
    devices=("cpu",),
    deterministic=True,
    time="L",
)


def strange(mistake: str = "") -> Variant:
    layer = type("Strange", (Strange,), {"mistake": mistake})
    return replace(
        MOE,
        name="strange",
        config=Config,
        layer_definition=None,
        layer=layer,
        promises=PROMISES,
        implementations=(),
        placement=None,
    )


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    """Of all that is about routing, and of all that is required, by check."""
    planned = attnkit_contracts.plan(strange())
    chosen = [each for each in planned if each.check.group in "FNA" or each.check.required]
    return {each.check.id: each.run(explain=False) for each in chosen}


def test_it_passes_what_it_can_be_judged_by(records: dict[str, Record]) -> None:
    wrong = [each.told for each in records.values() if each.status not in ("passed", "unsupported")]
    judged = {check for check, record in records.items() if record.status == "passed"}

    assert wrong == []
    assert {"S1.output", "F3.padding", "F5.tokens_apart", "A1.batch_independence"} <= judged


def test_nothing_that_is_required_needs_a_definition(records: dict[str, Record]) -> None:
    required = [each for each in attnkit_contracts.all_checks() if each.required]

    assert {records[each.id].status for each in required if each.id in records} == {"passed"}


def test_what_nobody_can_judge_is_said_by_name(records: dict[str, Record]) -> None:
    for check in ("N1.mixture", "N2.mixture", "F1.expert_permutation", "F4.router_gradient"):
        assert records[check].status == "unsupported"
        assert "nobody has a definition of the layer of 'strange'" in records[check].reason
        assert "down_proj (E, D, F), got gate.weight (4, 32)" in records[check].reason


WRONG = (("mixed", "F5.tokens_apart"), ("padding", "F3.padding"))


@pytest.mark.parametrize(("mistake", "check"), WRONG)
def test_a_wrong_one_is_caught(mistake: str, check: str) -> None:
    (instance,) = (e for e in attnkit_contracts.plan(strange(mistake)) if e.check.id == check)

    assert instance.run(explain=False).status == "failed"
