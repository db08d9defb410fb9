"""Host adapter for transformers 5: every model that calls its attention interface.

A transformers attention layer looks its function up by name, in its own ``config``. A swapped
layer gets a shallow copy of that config, which says ``attnkit``; the function under this name
finds the layer's mixer on the layer itself. So nothing is written to a config that another layer
or model can see, each layer has its own variant, and masks are still built by the model, from its
own config, in the form of its own implementation: `dispatch` translates them.

The name is registered with transformers at the first swap and stays; it does nothing for a model
that was not swapped.

Here is the declaration, which imports neither torch nor transformers. `finding` has the survey,
`dispatch` what runs in a swapped layer, `masking` how masks are read, `sampling` the probe.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from attnkit.hosts import Attachment, Host, Mixer, Site


class TransformersHost:
    """See `attnkit.hosts.Host`."""

    name = "transformers"

    def sites(self, model: nn.Module) -> Sequence[Site]:
        # a model of a library that was never imported cannot be here
        if sys.modules.get("transformers") is None:
            return ()
        from attnkit_plugins.transformers_host.finding import find_sites

        return find_sites(model)

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        from attnkit_plugins.transformers_host.dispatch import attach

        return attach(model, site.path, mixer, label)

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Mapping[str, object]:
        from attnkit_plugins.transformers_host.sampling import make_sample

        return make_sample(model, sites)

    def run(self, model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
        from attnkit_plugins.transformers_host.sampling import run

        return run(model, sample)


HOST = TransformersHost()


@attnkit.hookimpl
def attnkit_hosts() -> tuple[Host, ...]:
    """Offer the adapter."""
    return (HOST,)
