"""A mask as text, numbers and tensors: all that an operator registered with torch can be given.

Inside a graph of ``torch.compile`` such an operator is one node, whatever it does. It takes no
`Mask`, so an implementation that is one encodes its mask before the call and decodes it inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from attnkit.errors import MaskError
from attnkit.masks.algebra import And, Causal, Full, Mask, Or, SlidingWindow
from attnkit.masks.tensors import Blocks, Dense, Documents, Padding, PrefixLM, Unread

if TYPE_CHECKING:
    from torch import Tensor


FORMS: dict[str, tuple[type[Mask], tuple[str, ...]]] = {
    "full": (Full, ()),
    "causal": (Causal, ()),
    "window": (SlidingWindow, ("window_size",)),
    "both_paddings": (Padding, ("starts", "lengths")),
    "padding": (Padding, ("lengths",)),
    "left_padding": (Padding, ("starts",)),
    "documents": (Documents, ("ids",)),
    "prefix": (PrefixLM, ("prefix",)),
    "dense": (Dense, ("tensor",)),
    "unread": (Unread, ("tensor",)),
    "blocks": (Blocks, ("block_size", "block_map")),
}
"""By word: the class of a mask, and what it is made of; the first that fits a mask is its own."""

NUMBERS = frozenset({"window_size", "block_size"})


class MaskCode(NamedTuple):
    """A mask taken apart.

    Attributes:
        words: What it is made of, operands first: ``causal padding and``.
        numbers: The whole numbers that the words take, in their order.
        tensors: The tensors that the words take, in their order.
    """

    words: str
    numbers: list[int]
    tensors: list[Tensor]


def encode(mask: Mask) -> MaskCode:
    """Take a mask apart; ``torch.compile`` traces it.

    Raises:
        MaskError: A mask of a kind that attnkit does not make.
    """
    words: list[str] = []
    numbers: list[int] = []
    tensors: list[Tensor] = []
    _take_apart(mask, words, numbers, tensors)
    return MaskCode(" ".join(words), numbers, tensors)


def decode(words: str, numbers: Sequence[int], tensors: Sequence[Tensor]) -> Mask:
    """Put together what `encode` took apart."""
    made: list[Mask] = []
    sizes, held = iter(numbers), iter(tensors)
    for word in words.split(" "):
        if word == "and":
            right, left = made.pop(), made.pop()
            made.append(And((*left.conjuncts(), *right.conjuncts())))
        elif word == "or":
            right, left = made.pop(), made.pop()
            made.append(Or(left, right))
        else:
            kind, names = FORMS[word]
            made.append(kind(**{name: next(sizes if name in NUMBERS else held) for name in names}))
    (mask,) = made
    return mask


def _take_apart(mask: Mask, words: list[str], numbers: list[int], tensors: list[Tensor]) -> None:
    if isinstance(mask, And):
        _take_apart(mask.masks[0], words, numbers, tensors)
        for each in mask.masks[1:]:
            _take_apart(each, words, numbers, tensors)
            words.append("and")
    elif isinstance(mask, Or):
        _take_apart(mask.left, words, numbers, tensors)
        _take_apart(mask.right, words, numbers, tensors)
        words.append("or")
    else:
        word = _word(mask)
        words.append(word)
        for name in FORMS[word][1]:
            given = getattr(mask, name)
            if name in NUMBERS:
                numbers.append(given)
            else:
                tensors.append(given)


def _word(mask: Mask) -> str:
    for word, (kind, names) in FORMS.items():
        if type(mask) is kind and all(getattr(mask, name) is not None for name in names):
            return word
    raise MaskError(
        f"mask must be made of attnkit's masks to enter a graph, got {type(mask).__name__}; "
        "give it as attnkit.dense(tensor)"
    )
