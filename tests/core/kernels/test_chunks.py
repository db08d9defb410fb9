"""The arithmetic of chunks that variants share; their own tests have the whole recurrence."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck, gradgradcheck

from attnkit.kernels.chunks import apart, carry, pair_decays, side_by_side


def test_the_decay_matrix_has_right_first_and_second_derivatives() -> None:
    torch.manual_seed(1)
    log_decay = (-torch.randn(2, 5, dtype=torch.float64).abs()).requires_grad_()
    assert gradcheck(pair_decays, (log_decay,))
    assert gradgradcheck(pair_decays, (log_decay,))


def test_a_strong_decay_costs_those_after_it_no_digits() -> None:
    log_decay = torch.tensor([-1e-3, -1e4, -1e-3, -1e-3])
    decays = pair_decays(log_decay)
    assert torch.equal(decays.diag(), torch.ones(4))
    # a difference of running sums of 1e4 would keep three digits of it
    assert decays[3, 1] == torch.tensor(-2e-3).exp()
    assert decays[1, 0] == 0.0


def test_heads_laid_side_by_side_come_apart_again() -> None:
    value = torch.randn(2, 3, 4, 5, 6)
    assert side_by_side(value).shape == (2, 3, 5, 4 * 6)
    assert torch.equal(apart(side_by_side(value), 4), value)


def test_a_state_is_carried_through_decays() -> None:
    one = torch.ones(1)
    before, last = carry(one, (one, one), (one / 2, one / 4))
    assert torch.cat((*before, last)).tolist() == [1.0, 1.5, 1.375]
    before, last = carry(one, (one, one))
    assert torch.cat((*before, last)).tolist() == [1.0, 2.0, 3.0]
