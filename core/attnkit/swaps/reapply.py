"""A swap kept beside a checkpoint, and made again when the checkpoint is loaded.

    model.save_pretrained(folder)                  torch.save(model.state_dict(), "model.pt")
    swapped.save(folder)                           swapped.save("model.pt")

    model = AutoModel.from_pretrained(folder)      model.load_state_dict(torch.load("model.pt"))
    attnkit.reapply(model, folder)                 attnkit.reapply(model, "model.pt")

What is kept is the receipt: it is applied as a new swap, verified like any other, on the machine
and with the versions of the day. A swap that added weights (`attnkit.swaps.weights`) keeps them in
a file beside the receipt, with those of the layers that it replaced. The latter are put back first,
the former loaded into what the swap adds before it is tried: verified is what will run, against the
variant's own definition, as nobody knows what training made of it. As its class does not know them,
``load_state_dict`` of such a model needs ``strict=False``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from attnkit.errors import ConfigError, SwapError
from attnkit.hosts.mounts import submodule
from attnkit.swaps import weights as added
from attnkit.swaps.plan import assign
from attnkit.swaps.receipts import Receipt, receipt_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attnkit.sites import Site
    from attnkit.swaps.families import Assignment
    from attnkit.swaps.transaction import Swap
    from attnkit.swaps.weights import Added


def reapply(
    model: nn.Module, receipt: Receipt | str | Path, *, sample: Mapping[str, object] | None = None
) -> Swap:
    """Make a saved swap again in a model that was loaded without it.

    The weights that the swap added are put in place first, so that what is verified is what will
    run. The model is as it was if anything is raised.

    Args:
        model: The loaded model, or another of the same architecture.
        receipt: A receipt, or where ``Swap.save`` was told to put it: a folder, a checkpoint's
            file, or a file ``.json``. That of a swap which added weights must be a file's.
        sample: Keyword arguments of the model's forward, to verify on. None makes some.

    Returns:
        The swap. Its receipt is new; ``changes`` names every version that differs from those of
        the old one, and so does a warning.

    Raises:
        ConfigError: The receipt cannot be read, or the weights that the swap added.
        SwapError: Sites of the receipt are gone, or there are new ones; all are listed. Or
            whatever `attnkit.swap` raises.
        RegistryError: A variant of the receipt is not installed.
    """
    from attnkit.swaps.api import survey, swap_filled

    path = None if isinstance(receipt, Receipt) else receipt_path(receipt)
    old = receipt if isinstance(receipt, Receipt) else _read(receipt_path(receipt))
    file, kept = _kept(old, path)
    sites = survey(model)
    differing = tuple(_differing(old, sites, model))
    if differing:
        told = "\n  ".join(differing)
        raise SwapError(f"the receipt is not of this model, which is as it was:\n  {told}")

    def fill(brought: Sequence[Added]) -> None:
        for each in brought:
            added.put(kept, "added", each.path, each.module, file)

    with ExitStack() as undoing:
        for each in old.added:
            if any(name.startswith(f"replaced.{each}.") for name in kept):
                layer = submodule(model, each)
                undoing.callback(layer.load_state_dict, copy.deepcopy(layer.state_dict()))
                added.put(kept, "replaced", each, layer, file)
        swapped = swap_filled(model, old.plan, fill, sample=sample, accept=old.accept)
        undoing.pop_all()
    changes = tuple(_changes(old, swapped.receipt))
    if changes:
        swapped.receipt = swapped.receipt.model_copy(update={"changes": changes})
        told = "; ".join(changes)
        warnings.warn(f"re-applied and verified with other versions: {told}", stacklevel=2)
    return swapped


def _kept(old: Receipt, path: Path | None) -> tuple[Path, Mapping[str, Tensor]]:
    """Return the weights that the swap added, none for most, and their file."""
    if not old.added:
        return Path(), {}
    if path is None:
        raise ConfigError(
            f"the receipt is of a swap that added weights at {', '.join(old.added)}, which it does "
            "not hold; give where Swap.save put both, or make a new swap by attnkit.swap"
        )
    file = added.weights_path(path)
    return file, added.load(file)


def _read(path: Path) -> Receipt:
    try:
        return Receipt.load(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: no receipt can be read: {error}; Swap.save({str(path.parent)!r}) writes one"
        ) from error
    except ValidationError as error:
        raise ConfigError(f"{path}: is no receipt of attnkit: {error}") from error


def _differing(old: Receipt, sites: Sequence[Site], model: nn.Module) -> Iterator[str]:
    """Yield what the receipt and the model do not agree on."""
    there = {site.path: site for site in sites}
    for told in old.sites:
        site = there.get(told.path)
        if site is None:
            yield f"{told.path}: is gone, {type(model).__name__} has no such site"
        elif site.layer != told.layer:
            yield f"{told.path}: is a {site.layer}, was a {told.layer}"
    if all(told.path in there for told in old.sites):
        yield from _reassigned(old, assign(old.plan, sites))


def _reassigned(old: Receipt, assignments: Sequence[Assignment]) -> Iterator[str]:
    was = {told.path: told.variant for told in old.sites}
    for each in assignments:
        path, name = each.site.path, each.variant.name
        if path not in was:
            yield f"{path}: is new, the plan's {each.pattern!r} would put {name!r} there"
        elif was[path] != name:
            yield f"{path}: had {was[path]!r}, the plan now says {name!r}"


def _changes(old: Receipt, new: Receipt) -> Iterator[str]:
    for name, version in old.versions.items():
        now = new.versions.get(name, "not used")
        if now != version:
            yield f"{name} {version} is now {now}"
    for name, owner in old.owners.items():
        now = new.owners.get(name, "not used")
        if now != owner:
            yield f"variant {name!r} from {owner} is now from {now}"
