"""How things are said in terminals and messages: records as a table, a value by its kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Align columns; a cell of several lines continues below itself."""
    lines = [head, *(line for row in rows for line in _split(row))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _split(row: Sequence[str]) -> Iterable[Sequence[str]]:
    cells = [cell.splitlines() or [""] for cell in row]
    for number in range(max(map(len, cells))):
        yield [cell[number] if number < len(cell) else "" for cell in cells]


def kind_of(value: object) -> str:
    """Say what kind of thing a plugin gave, without printing the thing itself."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return f"{kind} {value!r}" if isinstance(value, (str, int, float)) else kind


def described(value: object) -> str:
    """Say what a call was given: shape and dtype of a tensor, the repr of anything else."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
