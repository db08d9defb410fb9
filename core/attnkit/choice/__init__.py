"""Which implementation runs a call, and why not the others.

Start with `front`: `choose`, for ``variant="auto"`` too. `decision` decides and explains;
`first_call` tries an implementation once before it is trusted; `graphs` decides under compile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.choice.decision import Candidate as Candidate
    from attnkit.choice.decision import Choice as Choice
    from attnkit.choice.decision import explain_choice as explain_choice
    from attnkit.choice.front import choose as choose
else:
    __getattr__, __dir__, __all__ = face(
        __name__,
        {
            "attnkit.choice.decision": "Candidate Choice explain_choice",
            "attnkit.choice.front": "choose",
        },
    )
