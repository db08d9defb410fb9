"""Host adapter for torch.nn: `MultiheadAttention`, alone and inside the Transformer layers.

A swapped module runs `multihead.forward` in the place of its own ``forward``. Two things of torch
go past a module's ``forward``, and are dealt with:

- The fused inference path of `TransformerEncoderLayer` reads the weights of its attention and
  never calls it. It leaves a layer alone that has hooks, so a swapped module has one; if it did
  not help, verification would find the site uncalled.
- `TransformerEncoder` drops padding in inference by nested tensors. They are taken as they come:
  padded, attended with a padding mask, and packed again.

Attention weights (``need_weights=True``, torch's default) are the variant's own: what it makes of
values that are the identity. That costs L S S per head; ask for them only where they are used.

Here is the declaration. `sites` has the survey, `multihead` what runs in a swapped module,
`samples` its inputs, `probes` what shows a leak.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment, Host, Inputs, Mixer, Outputs, Probe
    from attnkit.swaps.api import Site


class TorchHost:
    """See `attnkit.hosts.protocol.Host`."""

    name = "torch"
    tested: tuple[str, ...] = ("2.13",)

    def sites(self, model: nn.Module) -> Sequence[Site]:
        from attnkit_plugins.hosts.torch.sites import find_sites

        return find_sites(model)

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        from attnkit_plugins.hosts.torch.multihead import attach

        return attach(model, site, mixer, label)

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Inputs:
        from attnkit_plugins.hosts.torch.samples import make_sample

        return make_sample(model)

    def run(self, model: nn.Module, sample: Inputs) -> Outputs:
        from attnkit_plugins.hosts.torch.samples import run

        return run(model, sample)

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        from attnkit_plugins.hosts.torch.probes import make_probes

        return make_probes(model, sample)


HOST: Host = TorchHost()

attnkit_hosts = attnkit.hookimpl(lambda: (HOST,))
