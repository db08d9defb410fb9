"""Mixtures of experts as subjects: layers that have a definition, if their weights are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from attnkit.errors import UnsupportedError
from attnkit_contracts.definitions import oracle
from attnkit_contracts.definitions.answers import question
from attnkit_contracts.definitions.mistakes import mixture as mistakes
from attnkit_contracts.inputs.calls import Call
from attnkit_contracts.judging import units
from attnkit_contracts.judging.outputs import probed
from attnkit_contracts.subjects.layers import LayerSubject
from attnkit_contracts.subjects.target import RIGHTLY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from attnkit_contracts.subjects.subject import Bounds, Grads
    from attnkit_contracts.subjects.target import Reading, Target

EXPERTS = ("router.weight", "gate_up_proj", "down_proj")
"""What the definition reads; the first axis of each counts the experts."""


class MixtureLayer(LayerSubject):
    """The layer of a mixture of experts, or one implementation of it."""

    tokenwise = True

    @property
    def is_defined(self) -> bool:
        """Whether it has the definition's weights."""
        return self.known_weights() is not None

    def __init__(self, target: Target, **options: Any) -> None:
        super().__init__(target, **options)
        if self.is_defined:
            self.steps, self.mistakes = mistakes.RIGHT, mistakes.MISTAKES

    @property
    def top_k(self) -> int:
        """How many experts a token has."""
        return int(getattr(self.config, "top_k", 1))

    @property
    def renormalises(self) -> bool:
        """Whether the gates of a token sum to 1."""
        return bool(getattr(self.config, "renormalise", True))

    def known_weights(self) -> dict[str, Tensor] | None:
        """Return what the definition reads; None if the layer has other weights.

        Returns:
            ``router.weight`` (E, D), ``gate_up_proj`` (E, 2F, D) and ``down_proj`` (E, D, F).
        """
        held = self.weights()
        found = {name: held[name] for name in EXPERTS if name in held}
        if len(found) < len(EXPERTS) or found["down_proj"].dim() != 3:
            return None
        router, gate_up, down = (tuple(weight.shape) for weight in found.values())
        experts, width, hidden = down
        fits = router == (experts, width) and gate_up == (experts, 2 * hidden, width)
        return found if fits else None

    def expert_weights(self) -> dict[str, Tensor]:
        """Return the weights by name, or refuse: nobody has a definition of a layer with others."""
        weights = self.known_weights()
        if weights is None:
            raise UnsupportedError(
                f"nobody has a definition of the layer of {self.target.variant.name!r}: a mixture "
                "of experts is compared with sum_k gate_k E_k(x) if its weights are router.weight "
                f"(E, D), gate_up_proj (E, 2F, D) and down_proj (E, D, F), got "
                f"{', '.join(f'{n} {tuple(t.shape)}' for n, t in self.weights().items())}"
            )
        return weights

    def clear_call(self, label: str, *, length: int = 24, batch: int = 2) -> Call:
        """Return tokens whose choice of experts no rounding of the inputs changes.

        Of many tokens, those are taken whose last chosen and first rejected experts are far apart.
        A layer with other weights than the definition's gets any tokens: nobody knows its router.
        """
        weights = self.known_weights()
        if weights is None:
            return super().clear_call(label, length=length, batch=batch)
        pool = self.draw(label, batch=batch, length=8 * length)
        router = weights["router.weight"].double()
        x = pool.tensors["x"]
        top_k = int(getattr(self.config, "top_k", len(router)))
        if top_k >= len(router):
            return pool.tokens(0, length)
        logits = (x.double() @ router.T).sort(-1, descending=True).values  # (B, 8 L, E)
        margin = logits[..., top_k - 1] - logits[..., top_k]
        best = margin.argsort(-1, descending=True)[:, :length].sort(-1).values  # (B, L)
        return pool.given(x=x.gather(1, best[..., None].expand(-1, -1, x.shape[-1])))

    def without_padding(self, call: Call) -> Call:
        if not self.is_defined:
            return call
        return call.given(x=torch.where(self.real(call)[..., None], call.tensors["x"], 0.0))

    def real(self, call: Call) -> Tensor:
        """Return which tokens are no padding, (B, L)."""
        x = call.tensors["x"]
        return oracle.real_tokens(call.mask, x.shape[0], x.shape[1], x.device)

    def mixture(self, tensors: Mapping[str, Tensor], keep: Tensor | None = None) -> Tensor:
        """Return the definition of a mixture of experts in float64; padding is not kept, (B, L).

        Its tensors are ``x``, (B, L, D), and those of `expert_weights`.
        """
        gate_up, down = (tensors[name] for name in EXPERTS[1:])
        return oracle.mixture(tensors["x"], self.routing(tensors, keep), gate_up, down, keep)

    def routing(self, tensors: Mapping[str, Tensor], keep: Tensor | None = None) -> oracle.Routed:
        """Return what the definition's router decides; tensors and keep as of `mixture`."""
        return oracle.routing(
            tensors["x"],
            tensors["router.weight"],
            top_k=self.top_k,
            renormalise=self.renormalises,
            capacity_factor=getattr(self.config, "capacity_factor", None),
            keep=keep,
        )

    def mixture_bounds(
        self,
        call: Call,
        grads: Grads = None,
        keep: Tensor | None = None,
        probes: int | None = None,
    ) -> Bounds:
        """Return the definition's answer, and its gradients to the tokens and weights.

        What is no padding is kept, (B, L); probes as of `judging.outputs.probed`.
        """
        given, grads = {**call.tensors, **self.expert_weights()}, grads or {}
        chosen = self.top_k, self.renormalises, getattr(self.config, "capacity_factor", None)
        about = f"mixture {chosen} in {self.dtype}, with {probes} probes, {list(grads)}"
        asked = question(about, Call(given), (keep, *grads.values()))
        return self.target.answers.to(
            asked,
            lambda: probed(
                lambda tensors: {"out": self.mixture(tensors, keep)},
                {name: tensor.detach().clone() for name, tensor in given.items()},
                self.dtype,
                grads=grads,
                gate=units.layer_gate(self.dtype),
                probes=probes,
            ),
        )

    def bounds(self, call: Call, grads: Grads = None, how: Reading = RIGHTLY) -> Bounds:
        """Return bounds of its own float64; to find a mistake, of the definition in steps."""
        if how.rules is None:
            return super().bounds(call, grads, how)
        setting = mistakes.Setting(self.top_k, self.renormalises, self.real(call))
        dtype = how.dtype or self.dtype
        return probed(
            lambda given: {"out": mistakes.mix(given, setting, how.rules)},
            {"x": call.tensors["x"], **self.expert_weights()},
            dtype,
            grads=grads,
            gate=units.layer_gate(dtype),
            probes=how.probes,
        )
