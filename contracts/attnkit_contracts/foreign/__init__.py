"""Functions and layers that know nothing of attnkit, made into variants that can be judged.

Start with `conventions`: all that can be declared. `functions` and `layers` are the doors,
`function_calls` and `layer_calls` say how each is called.

A variant that has only an operation names ``"attnkit_contracts.foreign:no_layer"`` as its layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.lazy import face

if TYPE_CHECKING:
    from attnkit_contracts.foreign.functions import no_layer as no_layer
else:
    __getattr__, __dir__, __all__ = face(
        __name__, {"attnkit_contracts.foreign.functions": "no_layer"}
    )
