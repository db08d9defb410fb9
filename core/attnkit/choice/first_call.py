"""A small real call of an implementation: does it run here at all?

Promises say what should run; drivers, compilers and package versions have the last word. Each
implementation is tried once per device and dtype, before the first call it would win.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from attnkit.errors import BrokenImplementationWarning
from attnkit.frozen import Same
from attnkit.interface import Implementation, Variant, load
from attnkit.masks.constructors import Mask, blocks, causal, full, sliding_window
from attnkit.problem import SMALL, Problem, RecurrenceProblem, SoftmaxProblem, unmet
from attnkit.registry.registry import default

BELIEVED = 3
"""How often a small call must fail before it is no longer tried at every choice."""

USES = 32
"""How often a choice is used that passed over a failure, before it is made anew."""


class Lease:
    """That a choice is used for some time only."""

    def __init__(self) -> None:
        self._left = USES

    def lasts(self) -> bool:
        """Count a use; say whether it was covered."""
        self._left -= 1
        return self._left >= 0


class Failed:
    """That small calls of an implementation fail.

    A failure may be of the moment: memory was short, a transform was on. So it is tried again at
    the next choices, and even one that is believed at ever fewer of them.

    Attributes:
        why: In words.
        traceback: Where, in full.
        loads: Whether what is declared could be imported.
        times: How often it has failed.
    """

    def __init__(self) -> None:
        self.why, self.traceback = "", ""
        self.loads = True
        self.times = 0
        self._asked = 0
        self._again = 1
        self._is_told = False

    @property
    def believed(self) -> bool:
        """Whether it has failed often enough."""
        return self.times >= BELIEVED

    def is_due(self) -> bool:
        """Count a question; say whether to try again."""
        self._asked += 1
        return not self.believed or self._asked >= self._again

    def note(self, what: str, error: Exception, *, loads: bool = True) -> None:
        """Note another failure, of this."""
        self.why = f"{what}: {type(error).__name__}: {error}"
        self.traceback = "".join(traceback.format_exception(error))
        self.loads = loads
        self.times += 1
        self._again = 2 * self._asked

    def warn(self, what: str) -> None:
        """Warn of it once."""
        if not self._is_told:
            self._is_told = True
            told = f"{what}: {self.why}; `attnkit doctor` tells more"
            warnings.warn(told, BrokenImplementationWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """Return the ``stacklevel``, seen from who asks, of whoever called attnkit.

    Layers are called through torch: its frames are nobody's either.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _is_between(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def _is_between(module: str) -> bool:
    return module.partition(".")[0] in ("attnkit", "torch")


def first_call(variant: Variant, implementation: Implementation, problem: Problem) -> Failed | None:
    """Return why a small call like this one fails, or None where it runs."""
    known = default().remembered.first_calls
    whose = implementation.function
    key = (whose if isinstance(whose, str) else Same(whose), problem.device, problem.dtype)
    found: Failed | None = known.setdefault(key, Failed())
    if found is None or not found.is_due():
        return found
    try:
        function = load(implementation.function)
    # whatever a module raises that is imported, too
    except Exception as error:
        found.note(f"{implementation.function} does not load", error, loads=False)
        return found
    try:
        small = problem.smaller()
        # one that does not take small calls is first tried by a real one
        if not unmet(small, implementation.promises) and not implementation.refuses(small):
            _run(function, variant, small)
    # whatever goes wrong in a plugin is a reason not to choose it, and is told
    except Exception as error:
        found.note("a small call fails here", error)
        return found
    known[key] = None
    return None


def _run(function: Callable[..., Any], variant: Variant, problem: Problem) -> None:
    call = default().family(variant.family).first_call
    # of a mixture of experts none can be made up, its weights are a record of its own
    if call is not None:
        # nothing of the moment in which a program happens to call first
        with (
            temporarily_clear_interpreter_stack(),
            _disable_current_modes(),
            torch.no_grad(),
            torch.autocast(problem.device, enabled=False),
        ):
            load(call)(function, variant, problem)


def run_softmax(function: Callable[..., Any], variant: Variant, problem: SoftmaxProblem) -> None:
    """Make a small call of `attnkit.interface.SoftmaxFunction`."""
    query = _ones(problem, problem.heads, problem.query_length, problem.head_dim)
    key = _ones(problem, problem.kv_heads, problem.key_length, problem.head_dim)
    value = _ones(problem, problem.kv_heads, problem.key_length, problem.value_head_dim)
    scale = problem.head_dim**-0.5
    rules = {"bias": None, "softcap": None, "sinks": None, "dropout_p": 0.0}
    function(query, key, value, mask=_mask(problem), scale=scale, **rules)


def run_recurrence(
    function: Callable[..., Any], variant: Variant, problem: RecurrenceProblem
) -> None:
    """Make a small call of `attnkit.interface.RecurrenceFunction`."""
    length, width = problem.query_length, problem.head_dim
    query = _ones(problem, problem.groups, length, width)
    value = _ones(problem, problem.heads, length, problem.value_head_dim)
    decay = {"none": None, "head": -_ones(problem, problem.heads, length, 1)[..., 0]}
    decay["channel"] = -_ones(problem, problem.heads, length, width)
    options = variant.options()
    inputs = options.features(query, query, value)
    wide = torch.promote_types(value.dtype, torch.float32)
    shape = (1, problem.heads, *options.state_shape(width, problem.value_head_dim))
    function(
        *inputs,
        log_decay=decay[problem.decay],
        beta=_ones(problem, problem.heads, length, 1)[..., 0] if problem.beta else None,
        scale=1.0,
        initial_state=torch.zeros(shape, device=value.device, dtype=wide),
        options=options,
    )


def _ones(problem: Problem, heads: int, length: int, width: int) -> Tensor:
    dtype = getattr(torch, problem.dtype)
    return torch.ones(1, heads, length, width, device=problem.device, dtype=dtype)


def _mask(problem: SoftmaxProblem) -> Mask:
    mask = causal() if problem.causal else full()
    if "window" in problem.mask_parts:
        mask = mask & sliding_window(SMALL)
    if "blocks" in problem.mask_parts:
        device = torch.device(problem.device)
        mask = mask & blocks(torch.ones(1, 1, dtype=torch.bool, device=device), SMALL)
    return mask
