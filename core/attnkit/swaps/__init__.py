"""Swapping variants into a model by name: all or nothing, verified, undone by `restore`.

Start with `api`, what users call. `plan` reads what they ask, `decisions` says what it means at
each site, `transaction` carries it out, `outputs` and `leaks` measure it, `receipts` keeps it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit.swaps.api import explain as explain
    from attnkit.swaps.api import survey as survey
    from attnkit.swaps.api import swap as swap
    from attnkit.swaps.decisions import Decision as Decision
    from attnkit.swaps.decisions import Explanation as Explanation
    from attnkit.swaps.receipts import Receipt as Receipt
    from attnkit.swaps.transaction import Swap as Swap
else:
    __getattr__, __dir__, __all__ = face(
        __name__,
        {
            "attnkit.swaps.api": "explain survey swap",
            "attnkit.swaps.decisions": "Decision Explanation",
            "attnkit.swaps.transaction": "Swap",
            "attnkit.swaps.receipts": "Receipt",
        },
    )
