"""Host adapter for timm: every layer that can call torch's ``scaled_dot_product_attention``.

timm's layers hold two spellings of their attention, and ``fused_attn`` says which of them runs:
that function, or the same arithmetic spelt out. A swapped layer takes the first (Swin's windows
would not by themselves), and its call is answered by the variant, as `attnkit.hosts.sdpa_calls`
does. Relative positions and the masks of shifted windows arrive there as additive terms, so they
become the ``bias``. Layers without such a call are surveyed with that obstacle.

Here is the declaration, which imports neither torch nor timm. `sites` has all the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment, Host, Inputs, Mixer, Outputs
    from attnkit.swaps.api import Site


class TimmHost:
    """See `attnkit.hosts.protocol.Host`."""

    name = "timm"
    tested: tuple[str, ...] = ("1.0",)

    def sites(self, model: nn.Module) -> Sequence[Site]:
        # a model of a library that was never imported cannot be here
        if sys.modules.get("timm") is None:
            return ()
        from attnkit_plugins.hosts.timm.sites import find_sites

        return find_sites(model)

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        from attnkit_plugins.hosts.timm.sites import attach

        return attach(model, site, mixer, label)

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Inputs:
        from attnkit_plugins.hosts.timm.sites import make_sample

        return make_sample(model)

    def run(self, model: nn.Module, sample: Inputs) -> Outputs:
        from attnkit.hosts.outputs import run_model

        return run_model(model, sample)


HOST: Host = TimmHost()

attnkit_hosts = attnkit.hookimpl(lambda: (HOST,))
