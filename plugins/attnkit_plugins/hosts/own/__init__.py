"""Host adapter for a user's own modules.

Two kinds of module are sites: one whose ``forward`` calls
`torch.nn.functional.scaled_dot_product_attention`, as it stands; and one of a class that was
declared by `attnkit.declare`. Modules of libraries that have an adapter of their own are left to
that, unless they were declared.

Here is the declaration. `sites` has the survey, `answers` what runs in the place of a declared
method, `probes` what shows a leak, `attnkit.hosts.sdpa_calls` what runs around a call of torch's
function.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment, Host, Inputs, Mixer, Outputs, Probe
    from attnkit.swaps.api import Site


class OwnHost:
    """See `attnkit.hosts.protocol.Host`."""

    name = "own"
    tested: tuple[str, ...] = ()

    def sites(self, model: nn.Module) -> Sequence[Site]:
        from attnkit_plugins.hosts.own.sites import find_sites

        return find_sites(model)

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        from attnkit_plugins.hosts.own.sites import attach

        return attach(model, site, mixer, label)

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Inputs:
        from attnkit.errors import SwapError

        raise SwapError(
            f"cannot make inputs for {type(model).__name__}; give the swap sample={{...}}, keyword "
            "arguments of the model's forward"
        )

    def run(self, model: nn.Module, sample: Inputs) -> Outputs:
        from attnkit.hosts.outputs import run_model

        return run_model(model, sample)

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        from attnkit_plugins.hosts.own.probes import make_probes

        return make_probes(model, sites, sample)


HOST: Host = OwnHost()

attnkit_hosts = attnkit.hookimpl(lambda: (HOST,))
