"""Which implementation runs a call, and why not the others.

Start with `front`: `choose`, for ``variant="auto"`` too. `decision` decides and explains;
`first_call` tries an implementation once before it is trusted; `graphs` decides under compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.choice.decision import Candidate, Choice, explain_choice
    from attnkit.choice.front import choose
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.choice.decision": "Candidate Choice explain_choice",
            "attnkit.choice.front": "choose",
        },
    )

__all__ = [
    "Candidate",
    "Choice",
    "choose",
    "explain_choice",
]
