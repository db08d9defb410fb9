"""Hosts, asked: whatever an adapter answers is held against its contract before it is used.

`attnkit.hosts.protocol` is that contract. Who breaks it is named in a `HostError`, with what came
and what is allowed. What an adapter must have to be one, `complaint` says of an object that a
plugin offers.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from attnkit.errors import HostError
from attnkit.hosts.parts import Weights
from attnkit.hosts.protocol import Attachment, FeedforwardHost, Host, Mixer, Opener, Probe, Prober
from attnkit.sites import ROOT, Site
from attnkit.text import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

_MAY = (Opener, Prober, FeedforwardHost)


def complaint(host: object) -> str | None:
    """Return the first thing that keeps an object from being a host, in words, or None."""
    return next(_complaints(host), None)


def sites_of(host: Host, model: nn.Module) -> Sequence[Site]:
    """Ask where a host's sites are in a model."""
    found: object = host.sites(model)
    if not isinstance(found, Sequence) or isinstance(found, str):
        _refuse(host, "sites", kind_of(found), "a sequence of attnkit.sites.Site")
    for site in found:
        if not isinstance(site, Site):
            _refuse(host, "sites", f"{kind_of(site)} among them", "attnkit.sites.Site each")
        if site.host != host.name:
            _refuse(host, "sites", f"{site.path!r} of host {site.host!r}", "sites of its own name")
        if not _is_module(model, site.path):
            _refuse(
                host,
                "sites",
                f"path {site.path!r}, which {type(model).__name__} does not have",
                f"names of its modules, or {ROOT!r}",
            )
    return found


def attached(host: Host, model: nn.Module, site: Site, mixer: Mixer, label: str) -> Attachment:
    """Put a mixer at a site."""
    made: object = host.attach(model, site, mixer, label)
    if not isinstance(made, Attachment):
        _refuse(host, "attach", kind_of(made), "an object with blocked() and undo()")
    return made


def sample_of(host: Host, model: nn.Module, sites: Sequence[Site]) -> Mapping[str, object]:
    """Make inputs of a model."""
    made: object = host.sample(model, sites)
    if not isinstance(made, Mapping) or not all(isinstance(name, str) for name in made):
        _refuse(host, "sample", kind_of(made), "a mapping of names to a model's arguments")
    return made


def outputs_of(host: Host, model: nn.Module, sample: Mapping[str, object]) -> Mapping[str, Tensor]:
    """Run a model."""
    import torch

    allowed = "a mapping of names to tensors of floats, (..., D) each"
    outputs: object = host.run(model, sample)
    if not isinstance(outputs, Mapping):
        _refuse(host, "run", kind_of(outputs), allowed)
    for name, out in outputs.items():
        if not isinstance(out, torch.Tensor):
            _refuse(host, "run", f"{kind_of(out)} as {name!r}", allowed)
        if not out.is_floating_point() or not out.dim():
            _refuse(host, "run", f"{tuple(out.shape)} {out.dtype} as {name!r}", allowed)
    return outputs


def probes_of(
    host: Prober, model: nn.Module, sites: Sequence[Site], sample: Mapping[str, object]
) -> Sequence[Probe]:
    """Make probes of a model."""
    made: object = host.probes(model, sites, sample)
    if not isinstance(made, Sequence) or not all(isinstance(each, Probe) for each in made):
        _refuse(host, "probes", kind_of(made), "a sequence of attnkit.hosts.protocol.Probe")
    return made


def weights_of(host: FeedforwardHost, model: nn.Module, path: str) -> Weights:
    """Ask for the weights of a feed-forward site."""
    found: object = host.weights(model, path)
    allowed = "attnkit.hosts.parts.Weights with gate_up (E, 2F, D) and down (E, D, F)"
    if not isinstance(found, Weights):
        _refuse(host, "weights", kind_of(found), allowed)
    wide, narrow = tuple(found.gate_up.shape), tuple(found.down.shape)
    if len(narrow) != 3 or wide != (narrow[0], 2 * narrow[2], narrow[1]):
        _refuse(host, "weights", f"gate_up {wide} and down {narrow}", allowed)
    return found


def opened(host: Opener, folder: Path) -> nn.Module | None:
    """Open a saved model; None if it is not of the host's library."""
    import torch

    found: object = host.open(folder)
    if found is not None and not isinstance(found, torch.nn.Module):
        _refuse(host, "open", kind_of(found), "a torch.nn.Module or None")
    return found


def named(host: object) -> str:
    """Name a host, and where its code is from."""
    kind = type(host)
    return f"host {getattr(host, 'name', '?')!r} ({kind.__module__}.{kind.__qualname__})"


def _complaints(host: object) -> Iterator[str]:
    if isinstance(host, type):
        yield f"needs an instance, got {kind_of(host)}"
    name = getattr(host, "name", None)
    if not (isinstance(name, str) and name):
        yield f"name must be that of a library, got {kind_of(name)}"
    tested = getattr(host, "tested", None)
    if not (isinstance(tested, tuple) and all(isinstance(each, str) for each in tested)):
        yield f"tested must be a tuple of versions, got {kind_of(tested)}"
    for part, must in ((Host, True), *((each, False) for each in _MAY)):
        for method, parameters in _methods(part).items():
            if must or hasattr(host, method):
                yield from _wrong_method(host, method, parameters)


def _wrong_method(host: object, name: str, parameters: Sequence[str]) -> Iterator[str]:
    wanted = f"{name} must be a method ({', '.join(parameters)})"
    found = getattr(host, name, None)
    if not callable(found):
        yield f"{wanted}, got {kind_of(found)}"
        return
    signature = inspect.signature(found)
    try:
        signature.bind(*parameters)
    except TypeError:
        yield f"{wanted}, got {signature}"


def _methods(part: type) -> dict[str, Sequence[str]]:
    """Return the methods of a protocol, each with the names of its parameters."""
    return {
        name: tuple(inspect.signature(each).parameters)[1:]
        for name, each in vars(part).items()
        if inspect.isfunction(each) and not name.startswith("_")
    }


def _is_module(model: nn.Module, path: str) -> bool:
    if path == ROOT:
        return True
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _refuse(host: object, method: str, came: str, allowed: str) -> NoReturn:
    raise HostError(f"{named(host)}: {method} returned {came}; it must return {allowed}")
