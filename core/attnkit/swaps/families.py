"""From an assignment to what stands at its site, and to what tries it there first."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from attnkit.swaps.feedforward_site import Expert, Layered
from attnkit.swaps.outputs import Trial
from attnkit.swaps.recurrence_site import Carrying
from attnkit.swaps.softmax_site import Running
from attnkit.trials import FeedforwardTrial, RecurrentTrial

if TYPE_CHECKING:
    from torch import nn

    from attnkit.sites import Host
    from attnkit.swaps.feedforward_site import FeedforwardHost
    from attnkit.swaps.plan import Assignment

    Standing = Running | Carrying | Layered | Expert
    AnyTrial = Trial | RecurrentTrial | FeedforwardTrial


def mixer_of(model: nn.Module, host: Host, assignment: Assignment) -> Standing:
    """Build what an assignment asks for; nothing is changed in the model."""
    if assignment.variant.family == "softmax":
        return Running.of(assignment)
    if assignment.variant.family == "recurrence":
        return Carrying.of(assignment, _like(model.get_submodule(assignment.site.path)))
    if assignment.site.needs.num_experts is not None:
        return Expert.of(assignment)
    weights = cast("FeedforwardHost", host).weights(model, assignment.site.path)
    return Layered.of(assignment, weights)


def trial_of(assignment: Assignment, mixer: Standing) -> AnyTrial:
    """Return the mixer that tries another one beside the model's own function."""
    if isinstance(mixer, Carrying):
        return RecurrentTrial(assignment, mixer=mixer)
    if isinstance(mixer, Layered | Expert):
        return FeedforwardTrial(assignment, mixer=mixer)
    return Trial(assignment)


def _like(module: nn.Module) -> torch.Tensor:
    """Return a parameter whose device and dtype new parameters take."""
    parameters = (each for each in module.parameters() if each.is_floating_point())
    return next(parameters, torch.empty(0))
