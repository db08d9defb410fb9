"""When a difference is an error: how large it may be, and where it is.

Start with `units`; `outputs` compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit_contracts.judging.outputs import agree as agree
    from attnkit_contracts.judging.outputs import exactly as exactly
    from attnkit_contracts.judging.outputs import same_bits as same_bits
else:
    __getattr__, __dir__, __all__ = face(
        __name__, {"attnkit_contracts.judging.outputs": "agree exactly same_bits"}
    )
