"""What a library's adapter must implement, and the tools that adapters share.

Start with `protocol`: all that a host must do, and may. `parts` is what a variant builds for a
site; `mounts` puts something into a model and takes it out. `attnkit.swap` and its like are here
too, for who thinks of them by the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.hosts.protocol import Attachment as Attachment
    from attnkit.hosts.protocol import Call as Call
    from attnkit.hosts.protocol import FeedforwardHost as FeedforwardHost
    from attnkit.hosts.protocol import Host as Host
    from attnkit.hosts.protocol import LayerMixer as LayerMixer
    from attnkit.hosts.protocol import Memory as Memory
    from attnkit.hosts.protocol import Mixer as Mixer
    from attnkit.hosts.protocol import Opener as Opener
    from attnkit.hosts.protocol import Pair as Pair
    from attnkit.hosts.protocol import Passage as Passage
    from attnkit.hosts.protocol import Probe as Probe
    from attnkit.hosts.protocol import Prober as Prober
    from attnkit.hosts.protocol import Request as Request
    from attnkit.hosts.protocol import Span as Span
    from attnkit.hosts.protocol import StateMixer as StateMixer
    from attnkit.sites import Kind as Kind
    from attnkit.sites import Needs as Needs
    from attnkit.sites import Site as Site
    from attnkit.sites import Survey as Survey
    from attnkit.swaps.api import explain as explain
    from attnkit.swaps.api import survey as survey
    from attnkit.swaps.api import swap as swap
    from attnkit.swaps.decisions import Decision as Decision
    from attnkit.swaps.decisions import Explanation as Explanation
else:
    __getattr__, __dir__, __all__ = face(
        __name__,
        {
            "attnkit.hosts.protocol": "Attachment Call FeedforwardHost Host LayerMixer Memory "
            "Mixer Opener Pair Passage Probe Prober Request Span StateMixer",
            "attnkit.sites": "Kind Needs Site Survey",
            "attnkit.swaps.api": "explain survey swap",
            "attnkit.swaps.decisions": "Decision Explanation",
        },
    )
