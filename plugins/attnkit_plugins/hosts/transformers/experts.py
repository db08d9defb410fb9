"""Feed-forward layers of transformers models, and the experts in mixtures of them.

A dense layer is a module among its parent's: what stands in for it takes its place there. Experts
are a module that looks its function up by name, in its own ``config``, as attention does: swapped
experts get a shallow copy of that config, which says ``attnkit``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from attnkit.at_rest import weight_at_rest
from attnkit.errors import SwapError
from attnkit.hosts.mounts import original, submodule
from attnkit.hosts.parts import Routing, Weights
from attnkit.hosts.protocol import Attachment, LayerMixer, Mixer
from attnkit.sites import ROOT
from attnkit_plugins.hosts.transformers.bond import MARK, bind, own_config

KEY = "attnkit"

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_experts(module: nn.Module) -> bool:
    """Say whether a module calls transformers' interface of experts."""
    return all(hasattr(module, name) for name in ("is_concatenated", "has_gate", "_apply_gate"))


def experts_obstacle(module: Any) -> str | None:
    """Return how experts differ from y = W_down (activation(W_gate x) * W_up x), or None."""
    layer = type(module)
    own_gate = layer._apply_gate.__module__ != "transformers.integrations.moe"
    differing = {
        "no gate": not module.has_gate,
        "biases": module.has_bias,
        "transposed weights": module.is_transposed,
        "gate and up interleaved": not module.is_concatenated,
        "its own gate function": own_gate,
        "a norm after each expert": module.has_post_expert_norm,
        "experts on several devices": module._is_expert_parallel,
    }
    told = [what for what, differs in differing.items() if differs]
    if not told and getattr(module, "gate_up_proj", None) is None:
        told = ["weights of an unknown layout"]
    wrapped = "forward" in vars(module)
    if wrapped or any(p.is_meta or not p.is_floating_point() for p in module.parameters()):
        return _unread(layer.__name__)
    return f"experts: {layer.__name__} has {', '.join(told)}; none has a variant" if told else None


def feedforward_needs(module: Any) -> dict[str, Any]:
    """Return what `Needs` says of a dense layer or of experts beside its widths."""
    given = (getattr(module, name, None) for name in _ACTIVATIONS)
    activation = next((each for each in given if isinstance(each, nn.Module)), None)
    found: dict[str, Any] = {"activation": type(activation).__name__ if activation else None}
    if is_experts(module):
        found |= {"num_experts": int(module.num_experts), "gated": bool(module.has_gate)}
        shape = getattr(module, "gate_up_proj", torch.empty(0)).shape
        if len(shape) == 3 and experts_obstacle(module) is None:
            found |= {"embed_dim": shape[2], "hidden_dim": shape[1] // 2}
    else:
        found["gated"] = _is_gated(module)
    return found


def weights(module: nn.Module) -> Weights:
    """Return the weights of a site, those of a dense layer stacked to one expert."""
    own = module.own if isinstance(module, Standing) else module
    if is_experts(own):
        return Weights(own.gate_up_proj, own.down_proj)  # type: ignore[arg-type]  # parameters
    parts: Any = own
    fused = getattr(own, "gate_up_proj", None)
    if fused is not None:
        return Weights(parts.gate_up_proj.weight[None], parts.down_proj.weight[None])
    gate_up = torch.cat((parts.gate_proj.weight, parts.up_proj.weight))[None]  # (1, 2F, D)
    return Weights(gate_up, parts.down_proj.weight[None])


@dataclass
class Passed:
    """See `attnkit.hosts.protocol.Passage`."""

    module: nn.Module
    x: Tensor
    routing: Routing | None = None

    def weights(self) -> Weights:
        return weights(self.module)

    def own(self, dtype: torch.dtype) -> Tensor:
        x, module = self.x.to(dtype), self.module
        parameters = {}
        if dtype != self.x.dtype:
            parameters = {name: p.to(dtype) for name, p in module.named_parameters()}
        if self.routing is None:
            dense: Tensor = functional_call(module, parameters, (x,))
            return dense
        given = (x, self.routing.experts, self.routing.gates)
        config = own_config(module)
        if parameters:
            # the model's own loop: grouped products know no float64
            config = told(config, "eager")
        swapped, module.config = module.config, config
        try:
            out: Tensor = functional_call(module, parameters, given)
        finally:
            module.config = swapped
        return out


class Standing(nn.Module):
    """A module in the place of a dense layer that asks a mixer.

    Attributes:
        own: The layer whose place it takes.
    """

    def __init__(self, own: nn.Module, mixer: Mixer) -> None:
        super().__init__()
        self.own = own
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.mixer(Passed(self.own, x))


@dataclass
class Replaced:
    """See `attnkit.hosts.protocol.Attachment`; a dense layer's.

    Attributes:
        cast: Dtype and device of what took its place, when it did; None if it has no parameters.
    """

    path: str
    parent: nn.Module
    name: str
    own: nn.Module
    new: nn.Module
    cast: tuple[torch.dtype, torch.device] | None

    def blocked(self) -> str | None:
        if self.parent._modules.get(self.name) is self.new:
            return None
        return f"{self.path}: another module was put in its place after the swap"

    def undo(self) -> None:
        if not isinstance(self.new, Standing):
            self.own.train(self.new.training)
            # the model may have been converted or moved, and the layer was not in it
            cast = _cast(self.new)
            if cast is not None and cast != self.cast:
                dtype, device = cast
                self.own.to(device, dtype)
        self.parent._modules[self.name] = self.own


def attach(model: nn.Module, path: str, mixer: Mixer, label: str) -> Attachment:
    """Put a mixer at a dense layer or at experts."""
    module = submodule(model, path)
    if is_experts(module):
        return bind(module, path, mixer, label, told, register)
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layer = mixer.layer if isinstance(mixer, LayerMixer) else None
    new = Standing(module, mixer) if layer is None else layer.train(module.training)
    if layer is not None and not any(p.requires_grad for p in module.parameters()):
        layer.requires_grad_(requires_grad=False)
    # not by setattr: the order of modules would change
    parent._modules[name] = new
    return Replaced(path, parent, name, module, new, _cast(new))


def _cast(module: nn.Module) -> tuple[torch.dtype, torch.device] | None:
    """Return dtype and device of a module; None for one without parameters."""
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    return None if first is None else (first.dtype, first.device)


def dense_obstacle(path: str, module: nn.Module) -> str | None:
    """Return why no other module can take the place of a dense layer, or None."""
    layer = original(type(module)).__name__
    if path == ROOT:
        return f"{layer} is the model itself, in whose place nothing can be put; swap in a model"
    if any(hasattr(p, "device_mesh") for p in module.parameters()):
        return f"the parameters of {layer} are sharded; swap first, and shard after that"
    if any(getattr(each, name) for each in module.modules() for name in _HOOKS):
        return (
            f"{layer} has hooks, which would not run for what takes its place; remove them, and "
            "register them after the swap"
        )
    for name, child in module.named_children():
        weight = weight_at_rest(child)
        if any(True for _ in child.parameters()) and (weight is None or weight.is_meta):
            return _unread(f"{layer}.{name}")
    return None


def _unread(layer: str) -> str:
    return (
        f"the weights of {layer} cannot be read between two calls: they are offloaded, quantised "
        "or below something else; swap first, and do that after it"
    )


def run_experts(module: nn.Module, x: Tensor, experts: Tensor, gates: Tensor) -> Tensor:
    """Answer a call of transformers' interface of experts: x (T, D), the others (T, k)."""
    binding = module.__dict__.get(MARK)
    if binding is None:
        raise SwapError(
            f"{type(module).__name__} was told experts_implementation={KEY!r} but nothing was "
            "swapped into it; use attnkit.swap(model, ...)"
        )
    out: Tensor = binding.mixer(Passed(module, x, Routing(experts, gates)))
    return out


def register() -> None:
    """Let transformers know attnkit's name."""
    ALL_EXPERTS_FUNCTIONS.register(KEY, run_experts)


def told(config: Any, implementation: str = KEY) -> Any:
    """Return a shallow copy of a config that names an implementation of experts."""
    own = copy.copy(config)
    # the property would set the configs of sub-models too, which are shared
    own._experts_implementation_internal = implementation
    return own


def _is_gated(module: nn.Module) -> bool:
    """Say whether a layer is W_down (activation(W_gate x) * W_up x), without biases."""
    names = [{"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"}]
    matrices = {
        # a class derived from it may compute anything
        name: child
        for name, child in module.named_children()
        if original(type(child)) is nn.Linear
    }
    return set(matrices) in names and all(m.bias is None for m in matrices.values())
