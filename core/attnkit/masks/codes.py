"""A mask as text, numbers and tensors: all that an operator registered with torch can be given.

Inside a graph of ``torch.compile`` such an operator is one node, whatever it does. It takes no
`Mask`, so an implementation that is one encodes its mask before the call and decodes it inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from attnkit.errors import MaskError
from attnkit.masks.algebra import CAUSAL, FULL, And, Causal, Full, Mask, Or, SlidingWindow
from attnkit.masks.tensors import Blocks, Dense, Documents, Padding, PrefixLM, Unread

if TYPE_CHECKING:
    from torch import Tensor


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
            made.append(_made(word, sizes, held))
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
    elif isinstance(mask, Full):
        words.append("full")
    elif isinstance(mask, Causal):
        words.append("causal")
    elif isinstance(mask, SlidingWindow):
        words.append("window")
        numbers.append(mask.window_size)
    elif isinstance(mask, Padding):
        if mask.starts is None:
            words.append("padding")
        else:
            words.append("left_padding" if mask.lengths is None else "both_paddings")
            tensors.append(mask.starts)
        if mask.lengths is not None:
            tensors.append(mask.lengths)
    elif isinstance(mask, Documents):
        words.append("documents")
        tensors.append(mask.ids)
    elif isinstance(mask, PrefixLM):
        words.append("prefix")
        tensors.append(mask.prefix)
    elif isinstance(mask, Dense):
        words.append("unread" if isinstance(mask, Unread) else "dense")
        tensors.append(mask.tensor)
    elif isinstance(mask, Blocks):
        words.append("blocks")
        numbers.append(mask.block_size)
        tensors.append(mask.block_map)
    else:
        raise MaskError(
            f"mask must be made of attnkit's masks to enter a graph, got {type(mask).__name__}; "
            "give it as attnkit.dense(tensor)"
        )


def _made(word: str, numbers: Iterator[int], tensors: Iterator[Tensor]) -> Mask:
    match word:
        case "full":
            return FULL
        case "causal":
            return CAUSAL
        case "window":
            return SlidingWindow(next(numbers))
        case "padding":
            return Padding(None, next(tensors))
        case "left_padding":
            return Padding(next(tensors), None)
        case "both_paddings":
            return Padding(next(tensors), next(tensors))
        case "documents":
            return Documents(next(tensors))
        case "prefix":
            return PrefixLM(next(tensors))
        case "dense":
            return Dense(next(tensors))
        case "unread":
            return Unread(next(tensors))
        case "blocks":
            return Blocks(next(tensors), next(numbers))
        case _:
            raise AssertionError(word)
