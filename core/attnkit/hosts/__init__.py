"""What a library's adapter must implement, and the tools that adapters share.

Start with `protocol`: all that a host must do, and may. `parts` is what a variant builds for a
site; `mounts` puts something into a model and takes it out. `attnkit.swap` and its like are here
too, for who thinks of them by the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.hosts.protocol import (
        Attachment,
        Call,
        FeedforwardHost,
        Host,
        LayerMixer,
        Memory,
        Mixer,
        Opener,
        Pair,
        Passage,
        Probe,
        Prober,
        Request,
        Span,
        StateMixer,
    )
    from attnkit.sites import Kind, Needs, Site, Survey
    from attnkit.swaps.api import explain, survey, swap
    from attnkit.swaps.decisions import Decision, Explanation
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.hosts.protocol": "Attachment Call FeedforwardHost Host LayerMixer Memory "
            "Mixer Opener Pair Passage Probe Prober Request Span StateMixer",
            "attnkit.sites": "Kind Needs Site Survey",
            "attnkit.swaps.api": "explain survey swap",
            "attnkit.swaps.decisions": "Decision Explanation",
        },
    )

__all__ = [
    "Attachment",
    "Call",
    "Decision",
    "Explanation",
    "FeedforwardHost",
    "Host",
    "Kind",
    "LayerMixer",
    "Memory",
    "Mixer",
    "Needs",
    "Opener",
    "Pair",
    "Passage",
    "Probe",
    "Prober",
    "Request",
    "Site",
    "Span",
    "StateMixer",
    "Survey",
    "explain",
    "survey",
    "swap",
]
