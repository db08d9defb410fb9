"""I, continued: graphs and devices of a GPU. Elsewhere these are counted, and not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attnkit_contracts.catalogue import (
    BrokenError,
    Measured,
    SkippedEnvError,
    mixing_check,
    operation_check,
)
from attnkit_contracts.judging.outputs import agree, exactly, must_differ

if TYPE_CHECKING:
    from torch import Tensor

    from attnkit_contracts.subjects.subject import Subject


def need_gpus(subject: Subject, count: int) -> None:
    """Raise `SkippedEnvError` unless the subject is on a GPU and there are ``count`` of them."""
    if not subject.device.startswith("cuda"):
        raise SkippedEnvError(f"inputs on {subject.device}: needs a GPU")
    if torch.cuda.device_count() < count:
        raise SkippedEnvError(f"{torch.cuda.device_count()} GPU: needs {count}")


@mixing_check(
    "I9.graph_replay",
    "A captured graph, replayed with new data, gives what the call gives.",
    applies=lambda promises: "cuda" in promises.devices,
    dtypes=("float32",),
    tier="standard",
    verdict="R",
)
def graph_replay(subject: Subject) -> Measured:
    """Capture one call, and replay it with the data of another."""
    need_gpus(subject, 1)
    call, other = subject.draw("I9", length=33), subject.draw("I9 other", length=33)
    fixed = call.map(lambda _, t: t.clone())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with torch.no_grad():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                subject(fixed)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = subject(fixed)
        for name, tensor in other.tensors.items():
            fixed.tensors[name].copy_(tensor)
        graph.replay()
        wanted = subject(other)
        must_differ(wanted, subject(call), "other data")
    return agree(subject.bound(other), wanted, out, "replayed with new data")


@operation_check(
    "I9.other_device",
    "Inputs on a GPU that is not the current one give the same bits, and the current one stays.",
    applies=lambda promises: "cuda" in promises.devices and promises.deterministic,
    dtypes=("float32",),
    tier="standard",
)
def other_device(subject: Subject) -> Measured:
    """Call on the second GPU while the first is current."""
    need_gpus(subject, 2)
    call = subject.draw("I9", length=33)

    def on(device: str) -> Tensor:
        moved = call.map(lambda _, t: t.to(device))
        return subject(moved.masked(call.mask))

    here, there = on("cuda:0"), on("cuda:1")
    if str(there.device) != "cuda:1":
        raise BrokenError(f"inputs on cuda:1 gave an output on {there.device}")
    if torch.cuda.current_device() != 0:
        raise BrokenError(f"the current device became {torch.cuda.current_device()}")
    if not torch.equal(here.cpu(), there.cpu()):
        raise BrokenError("the second GPU gives other bits than the first")
    return exactly(0, "different elements")
