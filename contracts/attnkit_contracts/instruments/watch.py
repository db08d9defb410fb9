"""Who writes to what a call was given, or to what an earlier call gave: seen in every call.

torch counts the writes to a tensor. What lies in it is compared by `S2.inputs_unchanged`, which
sees those that torch does not.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from attnkit.masks.codes import encode
from attnkit_contracts.catalogue import BrokenError
from attnkit_contracts.instruments.process_state import quick_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call

MOST = 256
"""How many tensors are watched, the latest ones."""


class Watch:
    """The tensors of calls, and how often each had been written to then."""

    def __init__(self) -> None:
        self.seen: deque[tuple[str, Tensor, int]] = deque(maxlen=MOST)

    def run(self, call: Call, function: Callable[[Mapping[str, Tensor]], Any]) -> Any:
        """Make a call, which may change nothing that a process keeps.

        Raises:
            BrokenError: It does.
        """
        given = call.laid_tensors()
        for name, tensor in given.items():
            self._add(f"the call's {name}", tensor)
        for tensor in encode(call.mask).tensors:
            self._add("a tensor of the call's mask", tensor)
        before = quick_state()
        found = function(given)
        for name, now in quick_state().items():
            if now != before[name]:
                raise BrokenError(f"a call changes {name}: {before[name]} became {now}")
        # the first of what is given: a state is its owner's, who may let it grow in place
        out = found[0] if isinstance(found, tuple) else found
        if isinstance(out, torch.Tensor):
            self._add("what a call gave", out)
        return found

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Watch these no longer: the check itself writes to them."""
        # by their storages: encoding a mask again gives other views of them
        own = {each.untyped_storage().data_ptr() for each in tensors}
        kept = (each for each in self.seen if each[1].untyped_storage().data_ptr() not in own)
        self.seen = deque(kept, maxlen=MOST)

    def _add(self, what: str, tensor: Tensor) -> None:
        if not tensor.is_inference():
            self.seen.append((what, tensor, tensor._version))

    def written_to(self) -> Iterator[str]:
        """Yield what was written to since."""
        for what, tensor, version in self.seen:
            if tensor._version != version:
                yield what
