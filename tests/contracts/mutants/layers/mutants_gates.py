"""Layers of recurrences that go wrong around a right operation: gates, norms, convolutions, decays.

Only a definition of the whole layer tells: what they compute is consistent with itself.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from mutants_layers import underscored
from mutants_projections import Biasless
from torch import Tensor
from torch.nn.functional import pad, silu, softplus

from attnkit.layers import split_heads
from attnkit_plugins.recurrence.gated_linear import VARIANT as GATED_LINEAR
from attnkit_plugins.recurrence.gated_linear.layer import GatedLinearLayer
from attnkit_plugins.recurrence.linear import VARIANT as LINEAR
from attnkit_plugins.recurrence.linear.layer import LinearLayer
from attnkit_plugins.recurrence.state_space import VARIANT as STATE_SPACE
from attnkit_plugins.recurrence.state_space.convolution import convolve
from attnkit_plugins.recurrence.state_space.layer import StateSpaceLayer

if TYPE_CHECKING:
    from attnkit.interface import Variant


def sized(out: Tensor, eps: float, axes: int | tuple[int, ...] = -1) -> Tensor:
    return out * torch.rsqrt(out.square().mean(axes, keepdim=True) + eps)


class Linear(LinearLayer):
    """Has other options than its configuration says."""

    other: ClassVar[dict[str, Any]]

    def make(self, new: Any) -> None:
        super().make(new)
        self.options = self.options.model_copy(update=self.other)


class FeatureMapIgnored(Linear):
    other: ClassVar = {"feature_map": "elu1"}


class LinearEpsIgnored(Linear):
    other: ClassVar = {"eps": 1e-6}


class LinearHeadsTiled(LinearLayer):
    def recur(self, past: Any, *tensors: Tensor, **given: Any) -> Any:
        query, *pair = tensors
        shared = self.config.num_heads // self.config.kv_heads
        key, value = (each[:, ::shared].repeat(1, shared, 1, 1) for each in pair)
        return super().recur(past, query, key, value, **given)


class Gated(GatedLinearLayer):
    def _normed(self, out: Tensor, gate: Tensor) -> Tensor:
        wide = torch.promote_types(out.dtype, torch.float32)
        weight, eps = self.norm_weight.to(wide), self.config.norm_eps
        return self.norm(out.to(wide), weight, gate.to(wide), eps).to(gate.dtype)

    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        raise NotImplementedError


class NormWithoutEps(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out, 1e-30) * weight).flatten(2) * silu(gate)


class NormOverAllHeads(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out, eps, (-1, -2)) * weight).flatten(2) * silu(gate)


class NormCentred(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out - out.mean(-1, keepdim=True), eps) * weight).flatten(2) * silu(gate)


class NormWeightMissing(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out, eps) + 0 * weight).flatten(2) * silu(gate)


class GatedBySigmoid(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out, eps) * weight).flatten(2) * gate.sigmoid()


class GatedBeforeNorm(Gated):
    def norm(self, out: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
        return (sized(out * silu(gate).view_as(out), eps) * weight).flatten(2)


class TemperatureIgnored(GatedLinearLayer):
    def log_decay(self, x: Tensor) -> Tensor:
        learned = self.decay_proj is not None
        return super().log_decay(x) * (self.config.gate_temperature / 16 if learned else 1)


class DecayOfBaseTwo(GatedLinearLayer):
    def log_decay(self, x: Tensor) -> Tensor:
        return super().log_decay(x) * math.log(2)


class FixedDecaysReversed(GatedLinearLayer):
    def log_decay(self, x: Tensor) -> Tensor:
        decay = super().log_decay(x)
        return decay.flip(1) if self.config.decay == "fixed" else decay


class GatedScaleIgnored(GatedLinearLayer):
    def recur(self, past: Any, *tensors: Tensor, **given: Any) -> Any:
        return super().recur(past, *tensors, **given | {"scale": self.config.key_width**-0.5})


class GateBiasDropped(GatedLinearLayer):
    def make(self, new: Any) -> None:
        super().make(new)
        self.gate_proj.__class__ = Biasless


class Convolved(StateSpaceLayer):
    """With other taps, activations or inputs before the first token."""

    def _convolve(self, u: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        before = past.beside(past.state.inputs, u, u.dtype)
        if past.state.tokens == 0 and u.shape[1]:
            before = self.begun(before, u)
        bias = None if self.conv_bias is None else self.conv_bias.to(past.state.memory)
        weight = self.taps(self.conv_weight.to(past.state.memory))
        mixed, inputs = convolve(u, before, weight, bias, past.layout)
        return self.activated(mixed), inputs

    def begun(self, before: Tensor, u: Tensor) -> Tensor:
        return before

    def taps(self, weight: Tensor) -> Tensor:
        return weight

    def activated(self, mixed: Tensor) -> Tensor:
        return silu(mixed)


class ConvolutionOneLate(Convolved):
    def taps(self, weight: Tensor) -> Tensor:
        return pad(weight, (0, 1))[:, 1:]


class ConvolutionReversed(Convolved):
    def taps(self, weight: Tensor) -> Tensor:
        return weight.flip(1)


class ConvolutionOfRepeatedStart(Convolved):
    def begun(self, before: Tensor, u: Tensor) -> Tensor:
        return u[:, :1].mT.expand_as(before)


class ConvolutionNotActivated(Convolved):
    def activated(self, mixed: Tensor) -> Tensor:
        return mixed


class Scanned(StateSpaceLayer):
    """Runs on other steps, rates, skips or inputs."""

    def _scan(self, mixed: Tensor, dt: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        config, wide = self.config, mixed.dtype
        x, b, c = mixed.split(config.inner_width, -1)[0], *self.shared(mixed)
        x = split_heads(x, config.num_heads)
        dt = self.steps(dt.to(wide), self.dt_bias.to(wide)).transpose(1, 2)  # (B, H, L)
        rate = self.rate(self.A_log.to(wide))
        value = self.value(x, dt[..., None])
        out, memory = self.recur(past, c, b, value, log_decay=rate[:, None] * dt)
        return (out + self.skip(self.D.to(wide))[:, None] * x.transpose(1, 2)).flatten(2), memory

    def shared(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        pair = mixed[..., self.config.inner_width :].chunk(2, -1)
        b, c = (split_heads(each, self.config.num_groups) for each in pair)
        return b, c

    def steps(self, dt: Tensor, bias: Tensor) -> Tensor:
        return softplus(dt + bias)

    def rate(self, logarithm: Tensor) -> Tensor:
        return -logarithm.exp()

    def value(self, x: Tensor, dt: Tensor) -> Tensor:
        return x * dt

    def skip(self, weight: Tensor) -> Tensor:
        return weight


class SkipMissing(Scanned):
    def skip(self, weight: Tensor) -> Tensor:
        return 0 * weight


class SkipOfOnes(Scanned):
    def skip(self, weight: Tensor) -> Tensor:
        return weight**0


class StepBiasMissing(Scanned):
    def steps(self, dt: Tensor, bias: Tensor) -> Tensor:
        return softplus(dt + 0 * bias)


class StepsOfLowThreshold(Scanned):
    """Takes z for softplus(z) from 2 on, where it is off by 0.13."""

    def steps(self, dt: Tensor, bias: Tensor) -> Tensor:
        return softplus(dt + bias, threshold=2)


class StepsCutOff(Scanned):
    def steps(self, dt: Tensor, bias: Tensor) -> Tensor:
        return softplus(dt + bias).clamp(max=0.1)


class StepsNotInValues(Scanned):
    def value(self, x: Tensor, dt: Tensor) -> Tensor:
        return x


class RateWithoutExponential(Scanned):
    def rate(self, logarithm: Tensor) -> Tensor:
        return -softplus(logarithm)


class InputAndOutputExchanged(Scanned):
    def shared(self, mixed: Tensor) -> tuple[Tensor, Tensor]:
        b, c = super().shared(mixed)
        return c, b


class Normed(StateSpaceLayer):
    def _norm(self, out: Tensor, z: Tensor) -> Tensor:
        weight = self.norm_weight.to(out.dtype)
        return self.normed(out, z.to(out.dtype), weight).to(z.dtype)

    def grouped(self, out: Tensor, parts: int) -> Tensor:
        apart = torch.unflatten(out, -1, (parts, -1))
        return sized(apart, self.config.norm_eps).flatten(2)

    def normed(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError


class GatedAfterNorm(Normed):
    def normed(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return self.grouped(out, self.config.num_groups) * weight * silu(z)


class NormOfOneGroup(Normed):
    def normed(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return self.grouped(out * silu(z), 1) * weight


class NormOfEachHead(Normed):
    def normed(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return self.grouped(out * silu(z), self.config.num_heads) * weight


KILLS: tuple[tuple[type[Any], Variant, str], ...] = (
    (FeatureMapIgnored, LINEAR, "N1.layer_options"),
    (LinearEpsIgnored, LINEAR, "N1.layer_options"),
    (LinearHeadsTiled, LINEAR, "N1.layer"),
    (NormWithoutEps, GATED_LINEAR, "N1.layer"),
    (NormOverAllHeads, GATED_LINEAR, "N1.layer"),
    (NormCentred, GATED_LINEAR, "N1.layer"),
    (NormWeightMissing, GATED_LINEAR, "N1.layer"),
    (GatedBySigmoid, GATED_LINEAR, "N1.layer"),
    (GatedBeforeNorm, GATED_LINEAR, "N1.layer"),
    (TemperatureIgnored, GATED_LINEAR, "N1.layer_options"),
    (DecayOfBaseTwo, GATED_LINEAR, "N1.layer"),
    (FixedDecaysReversed, GATED_LINEAR, "N1.layer_options"),
    (GatedScaleIgnored, GATED_LINEAR, "N1.layer_options"),
    (GateBiasDropped, GATED_LINEAR, "N1.layer_options"),
    (ConvolutionOneLate, STATE_SPACE, "N1.layer"),
    (ConvolutionReversed, STATE_SPACE, "N1.layer"),
    (ConvolutionOfRepeatedStart, STATE_SPACE, "N1.layer"),
    (ConvolutionNotActivated, STATE_SPACE, "N1.layer"),
    (SkipMissing, STATE_SPACE, "N1.layer"),
    (SkipOfOnes, STATE_SPACE, "N1.layer"),
    (StepBiasMissing, STATE_SPACE, "N1.layer"),
    (StepsOfLowThreshold, STATE_SPACE, "N1.layer"),
    (StepsCutOff, STATE_SPACE, "N1.layer"),
    (StepsNotInValues, STATE_SPACE, "N1.layer"),
    (RateWithoutExponential, STATE_SPACE, "N1.layer"),
    (InputAndOutputExchanged, STATE_SPACE, "N1.layer"),
    (GatedAfterNorm, STATE_SPACE, "N1.layer"),
    (NormOfOneGroup, STATE_SPACE, "N1.layer_options"),
    (NormOfEachHead, STATE_SPACE, "N1.layer"),
)

MUTANTS = tuple(
    (replace(right, name=f"mutant_layer{underscored(layer)}", layer=layer), kills, "layer")
    for layer, right, kills in KILLS
)
