"""Which of torch's function transforms a call is made under: ``torch.func``, forward mode.

They are of the moment, and no tensor tells of them: inside ``vmap`` one looks like a sample, and
under ``jvp`` a kernel without a forward derivative fails late, with an error of torch's own.
"""

from __future__ import annotations

import torch
import torch._C._functorch as _functorch
from torch.autograd import forward_ad

from attnkit.promises import Transform

# torch tells of its transforms nowhere else
_peek = _functorch.peek_interpreter_stack
_stack = _functorch.get_interpreter_stack

_NONE: frozenset[Transform] = frozenset()
_NAMES: dict[str, Transform] = {"Grad": "grad", "Vmap": "vmap", "Jvp": "jvp"}


def transforms() -> frozenset[Transform]:
    """Return those that are on; none inside a graph of ``torch.compile``, which has its own."""
    if torch.compiler.is_compiling():
        return _NONE
    if _peek() is None and forward_ad._current_level < 0:
        return _NONE
    names = [each.key().name for each in _stack() or ()]
    if forward_ad._current_level >= 0:
        names.append("Jvp")
    return frozenset(_NAMES[each] for each in names if each in _NAMES)
