"""What the definition answered before: every implementation of a variant is given the same calls.

Nothing that an implementation gives is kept, only what it is measured against; and a call is the
same only if all that the definition reads of it is, to the last bit.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from attnkit_contracts.inputs.calls import Call

Answer = TypeVar("Answer")

MOST = 1024
"""How many answers are kept; those to small calls are about 50 kB each."""


class Answers:
    """Of the definitions of the variants that are checked together."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}

    def to(self, question: bytes, ask: Callable[[], Answer]) -> Answer:
        """Return the answer to a question; it is asked if nobody did lately."""
        if question not in self._known:
            self._known[question] = ask()
            if len(self._known) > MOST:
                del self._known[next(iter(self._known))]
        answer: Answer = self._known[question]
        return answer


def question(about: str, call: Call, mask: Iterable[Tensor | None], *further: Tensor) -> bytes:
    """Return a digest of all that an answer depends on: a call, and what is read of its mask.

    What is asked, of which variant and dtype, is said by ``about``.
    """
    digest = hashlib.sha256(about.encode())
    digest.update(repr(sorted(call.extras.items())).encode())
    unnamed = [("", each) for each in (*mask, *further)]
    for name, tensor in (*sorted(call.tensors.items()), *unnamed):
        if tensor is None:
            digest.update(b"None")
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
