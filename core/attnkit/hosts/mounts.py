"""A function in the place of a module's own method, and the way back.

Hosts whose modules cannot be told what to run (torch, timm, a user's own) put a `Mount` into the
module's ``__dict__``, under the name of the method: the class, its other instances and the
module's parameters are not touched. Mounts stack, come out in reverse order, and are copied and
pickled with their module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnkit.at_rest import input_like
from attnkit.errors import SwapError
from attnkit.sites import ROOT, Kind, Needs, Site

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Attachment, Mixer


@dataclass(eq=False)
class Mount:
    """What stands in the place of a method.

    Attributes:
        module: The module.
        method: Name of the method.
        answer: Called as ``answer(mount, *args, **keywords)``; a function of a module, so that
            copies and pickles find it by name.
        mixer: Answers the site's calls.
        label: Name of what was swapped in.
        needs: What the site is known to need.
        below: The mount that this one stands on.
        kept: What the module's ``__dict__`` held under the names that were set.
        names: All names that were set.
    """

    module: nn.Module
    method: str
    answer: Callable[..., Any]
    mixer: Mixer
    label: str
    needs: Needs
    below: Mount | None = None
    kept: dict[str, object] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """Answer a call of the method."""
        return self.answer(self, *args, **keywords)

    def own(self) -> Callable[..., Any]:
        """Return the method as it was before any mount."""
        kept: Any = self.kept.get(self.method)
        if kept is None:
            kept = getattr(type(self.module), self.method).__get__(self.module)
        function: Callable[..., Any] = kept
        return function


@dataclass(frozen=True)
class Mounted:
    """See `attnkit.hosts.protocol.Attachment`."""

    path: str
    mount: Mount

    def blocked(self) -> str | None:
        """Return why it cannot be undone now."""
        mount = self.mount
        top = mount.module.__dict__.get(mount.method)
        if top is mount:
            return None
        if not isinstance(top, Mount):
            return f"{self.path}: {mount.method} was replaced by other means after the swap"
        return (
            f"{self.path}: {top.label!r} was swapped in after {mount.label!r}; "
            "restore that swap first"
        )

    def undo(self) -> None:
        """Put back, by identity, what was there."""
        mount, members = self.mount, self.mount.module.__dict__
        if mount.below is not None:
            members[mount.method] = mount.below
            return
        for name in mount.names:
            if name in mount.kept:
                members[name] = mount.kept[name]
            else:
                del members[name]


def mount(
    model: nn.Module,
    site: Site,
    mixer: Mixer,
    label: str,
    answer: Callable[..., Any],
    *,
    method: str = "forward",
    attributes: Mapping[str, object] | None = None,
) -> Mounted:
    """Put a function in the place of a method of the module at a site.

    Args:
        model: The model that was surveyed.
        site: One of its sites.
        mixer: Answers the site's calls.
        label: Name of what is swapped in.
        answer: See `Mount`.
        method: Name of the method.
        attributes: Members of the module to set for as long as it is mounted.
    """
    module = submodule(model, site.path)
    members = module.__dict__
    below = members.get(method)
    made = Mount(module, method, answer, mixer, label, site.needs)
    if isinstance(below, Mount):
        made.below, made.kept, made.names = below, below.kept, below.names
    else:
        given = dict(attributes or {})
        made.names = (method, *given)
        made.kept = {name: members[name] for name in made.names if name in members}
        members.update(given)
    members[method] = made
    return Mounted(site.path, made)


def undo_all(attachments: Sequence[Attachment]) -> None:
    """Undo in reverse order; one that fails keeps no other from being undone.

    Raises:
        SwapError: Some failed; all reasons are listed.
    """
    failed = []
    for attachment in reversed(attachments):
        try:
            attachment.undo()
        except Exception as error:  # of a host
            failed.append(error)
    if failed:
        told = "\n  ".join(f"{type(error).__name__}: {error}" for error in failed)
        raise SwapError(
            f"{len(failed)} of {len(attachments)} sites could not be undone, the rest were; the "
            f"model was changed after the swap, load it anew:\n  {told}"
        ) from failed[0]


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a site."""
    return model if path == ROOT else model.get_submodule(path)


def site_at(
    host: str,
    name: str,
    module: nn.Module,
    kind: Kind,
    needs: Needs,
    obstacle: str | None = None,
    *,
    input_dim: int | None = None,
    intercepts: bool = False,
) -> Site:
    """Return the record of a module as a site, see `attnkit.sites.Site`.

    Args:
        host: Name of the host.
        name: The module's name in ``model.named_modules()``.
        module: The module.
        kind: Of the site.
        needs: What the layer uses.
        obstacle: Why nothing can go there.
        input_dim: See `attnkit.sites.Site`.
        intercepts: See `attnkit.sites.Site`.
    """
    like = input_like(module)
    return Site(
        path=site_path(name),
        kind=kind,
        layer=original(type(module)).__name__,
        host=host,
        needs=needs,
        dtype=str(like.dtype).removeprefix("torch."),
        device=like.device.type,
        obstacle=obstacle,
        input_dim=input_dim,
        intercepts=intercepts,
    )


def original(layer: type) -> type:
    """Return a module's class as its author named it: sharding (FSDP2) derives one from it."""
    if layer.__name__.startswith("FSDP") and layer.__bases__[0].__name__ == "FSDPModule":
        return layer.__bases__[-1]
    return layer


def site_path(name: str) -> str:
    """Return the path of a module, from its name in ``model.named_modules()``."""
    return name or ROOT
