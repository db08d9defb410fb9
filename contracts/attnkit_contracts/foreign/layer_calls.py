"""How a foreign layer is called: its input laid out, masks written, its output picked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attnkit.errors import UnsupportedError
from attnkit.interface import LayerConfig
from attnkit.masks.constructors import Causal, Mask, Padding, Sizes, causal, full
from attnkit_contracts.foreign.tensors import swapped, written

if TYPE_CHECKING:
    from attnkit_contracts.foreign.conventions import LayerConvention


class ForeignLayer(nn.Module):
    """A module of somebody else, called as layers of attnkit are."""

    def __init__(self, module: nn.Module, convention: LayerConvention) -> None:
        super().__init__()
        self.module = module
        self.config = LayerConfig(embed_dim=convention.width)
        self.convention = convention
        self.claims = convention.claims

    def init_state(self, batch_size: int) -> None:
        """Refuse."""
        raise UnsupportedError("state: a layer given to adapt_layer promises none")

    def forward(self, x: Tensor, *, mask: Mask = full(), state: object = None) -> Tensor:
        """Mix the tokens of each sample, (B, L, D); refuse a mask with what is not promised."""
        if state is not None:
            raise UnsupportedError("state: a layer given to adapt_layer promises none")
        convention = self.convention
        sizes = Sizes(x.shape[0], convention.mask_heads, x.shape[1], x.shape[1])
        mask.check(sizes)
        self._check_promised(mask)
        named = {**(convention.fixed or {}), **self._hiding(mask, sizes, x)}
        laid = swapped(x, convention.layout)
        if convention.x_arguments:
            out = self.module(**dict.fromkeys(convention.x_arguments, laid), **named)
        else:
            out = self.module(laid, **named)
        if convention.output is not None:
            out = getattr(out, convention.output)
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return swapped(first, convention.layout)

    def _check_promised(self, mask: Mask) -> None:
        others = sorted(mask.parts - set(self.claims.masks))
        if others:
            raise UnsupportedError(f"mask {', '.join(others)}: not promised")
        if mask.is_causal and not self.claims.causal:
            raise UnsupportedError("causal: not promised")
        if self.convention.mask_shape == "LS":
            for part in mask.conjuncts():
                by_argument = isinstance(part, Padding) and self.convention.padding_argument
                if (part.per_batch or part.per_head) and not by_argument:
                    raise UnsupportedError(f"mask {part!r}: the layer takes one (L, L) for all")

    def _hiding(self, mask: Mask, sizes: Sizes, x: Tensor) -> dict[str, Any]:
        """Return the arguments that hide what the mask hides."""
        convention = self.convention
        named: dict[str, Any] = {}
        rest, real = full(), None
        for part in mask.conjuncts():
            if isinstance(part, Padding) and convention.padding_argument:
                keep = part.keep(sizes).to(x.device)  # (B, L)
                real = keep if real is None else real & keep
            else:
                rest = rest & part
        if real is not None and convention.padding_argument:
            named[convention.padding_argument] = written(real, convention.padding, x.dtype)
        if not self.claims.bidirectional:
            rest = rest & causal()
        parts = rest.conjuncts()
        alone = all(isinstance(part, Causal) for part in parts)
        if parts and alone and convention.causal_argument:
            named[convention.causal_argument] = True
        elif parts and not (alone and not self.claims.bidirectional):
            assert convention.mask_argument is not None
            named[convention.mask_argument] = self._mask(rest, sizes, x)
        return named

    def _mask(self, mask: Mask, sizes: Sizes, x: Tensor) -> Tensor:
        batch, heads, queries, keys = sizes
        seen = mask.to_bool(sizes, x.device)  # (B or 1, H or 1, L, L)
        match self.convention.mask_shape:
            case "LS":
                seen = seen[0, 0]
            case "BLS":
                seen = seen.expand(batch, heads, queries, keys).reshape(-1, queries, keys)
            case _:
                # as models do: every mask has all samples
                seen = seen.expand(batch, -1, -1, -1)
        return written(seen, self.convention.mask, x.dtype)
