"""What a library's adapter must implement, and the tools that adapters share.

Start with `mounts`. `attnkit.swap` and its like are here too, for who thinks of them by the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.sites import Attachment, Call, Host, Kind, Mixer, Needs, Request, Site, Survey
    from attnkit.swaps.api import explain, survey, swap
    from attnkit.swaps.decisions import Decision, Explanation
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.sites": "Attachment Call Host Kind Mixer Needs Request Site Survey",
            "attnkit.swaps.api": "explain survey swap",
            "attnkit.swaps.decisions": "Decision Explanation",
        },
    )

__all__ = [
    "Attachment",
    "Call",
    "Decision",
    "Explanation",
    "Host",
    "Kind",
    "Mixer",
    "Needs",
    "Request",
    "Site",
    "Survey",
    "explain",
    "survey",
    "swap",
]
