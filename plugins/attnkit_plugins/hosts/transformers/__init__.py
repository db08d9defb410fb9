"""Host adapter for transformers 5: models that call its attention interface, and some that do not.

A transformers attention layer looks its function up by name, in its own ``config``. A swapped
layer gets a shallow copy of that config, which says ``attnkit``; the function under this name
finds the layer's mixer on the layer itself. So nothing is written to a config that another layer
or model can see, each layer has its own variant, and masks are still built by the model, from its
own config, in the form of its own implementation: `dispatch` translates them. Some layers that do
the arithmetic themselves are given, while they are swapped, a class that calls the interface:
`rewriter` has which.

The name is registered with transformers at the first swap and stays; it does nothing for a model
that was not swapped.

Here is the declaration, which imports neither torch nor transformers. `sites` has the survey,
`dispatch` what runs in a swapped layer, `attention_weights` who asks for what it cannot give,
`masks` how masks are read, `recurrent` and `experts` what stands in for attention and for
feed-forward layers, `samples` the inputs, `probes` what shows a leak, `opener` saved models.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attnkit

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from attnkit.hosts.parts import Weights
    from attnkit.hosts.protocol import Attachment, Host, Inputs, Mixer, Outputs, Probe
    from attnkit.swaps.api import Site


class TransformersHost:
    """See `attnkit.hosts.protocol.Host`."""

    name = "transformers"
    tested: tuple[str, ...] = ("5.23",)

    def sites(self, model: nn.Module) -> Sequence[Site]:
        # a model of a library that was never imported cannot be here
        if sys.modules.get("transformers") is None:
            return ()
        from attnkit_plugins.hosts.transformers.sites import find_sites

        return find_sites(model)

    def attach(self, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
        from attnkit.hosts.mounts import mount, original, submodule
        from attnkit.hosts.protocol import StateMixer
        from attnkit.hosts.sdpa_calls import intercept
        from attnkit_plugins.hosts.transformers import dispatch, experts, interface, recurrent
        from attnkit_plugins.hosts.transformers.attention_weights import guarded
        from attnkit_plugins.hosts.transformers.rewriter import attach, rewritten

        if site.kind == "feedforward":
            return experts.attach(model, site.path, mixer, label)
        module = submodule(model, site.path)
        layer = original(type(module))
        stand_in = rewritten(layer)

        def put() -> Attachment:
            if isinstance(mixer, StateMixer):
                return recurrent.attach(model, site.path, mixer, label)
            return dispatch.attach(model, site.path, mixer, label)

        def placed() -> Attachment:
            if stand_in is not None:
                return attach(module, stand_in, put)
            if interface.caller(layer) is None:
                # it calls torch's function, not the interface
                return mount(model, site, mixer, label, intercept)
            return put()

        return guarded(model, site.path, placed)

    def weights(self, model: nn.Module, path: str) -> Weights:
        from attnkit.hosts.mounts import submodule
        from attnkit_plugins.hosts.transformers.experts import weights

        return weights(submodule(model, path))

    def sample(self, model: nn.Module, sites: Sequence[Site]) -> Inputs:
        from attnkit_plugins.hosts.transformers.samples import make_sample

        return make_sample(model, sites)

    def run(self, model: nn.Module, sample: Inputs) -> Outputs:
        from attnkit_plugins.hosts.transformers.samples import run

        return run(model, sample)

    def probes(self, model: nn.Module, sites: Sequence[Site], sample: Inputs) -> Sequence[Probe]:
        from attnkit_plugins.hosts.transformers.probes import make_probes

        return make_probes(model, sites, sample)

    def open(self, folder: Path) -> nn.Module | None:
        from attnkit_plugins.hosts.transformers.opener import open_folder

        return open_folder(folder)


HOST: Host = TransformersHost()

attnkit_hosts = attnkit.hookimpl(lambda: (HOST,))
