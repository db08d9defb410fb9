"""Which implementation runs a call, and why not the others.

Start with `decision`: `explain_choice` says it, `choose` does it, for ``variant="auto"`` too.
`first_call` tries an implementation once before it is trusted; `graphs` decides under compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.choice.decision import Candidate, Choice, choose, explain_choice
else:
    __getattr__, __dir__ = face(
        __name__,
        {
            "attnkit.choice.decision": "Candidate Choice choose explain_choice",
        },
    )

__all__ = [
    "Candidate",
    "Choice",
    "choose",
    "explain_choice",
]
