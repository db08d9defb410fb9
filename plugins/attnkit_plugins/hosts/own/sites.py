"""The sites among a user's own modules, and how a variant gets there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnkit.hosts.mounts import Mounted, mount, site_at, submodule
from attnkit.hosts.own_modules import declaration
from attnkit.hosts.sdpa_calls import calls_attention, intercept
from attnkit.registry.registry import default
from attnkit.swaps.api import Needs, Site
from attnkit_plugins.hosts.own.answers import answer

if TYPE_CHECKING:
    from torch import nn

    from attnkit.hosts.protocol import Mixer


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """Return the declared modules of a model, and those that call torch's attention function."""
    known = {host.name for host in default().hosts()}
    found = []
    for name, module in model.named_modules():
        declared = declaration(type(module))
        if declared is not None:
            needs, intercepts = declared.needs_of(module), not declared.parameters
        elif calls_attention(type(module)) and _library(module) not in known:
            needs, intercepts = Needs(), True
        else:
            continue
        found.append(site_at("own", name, module, "attention", needs, intercepts=intercepts))
    return tuple(found)


def attach(model: nn.Module, site: Site, mixer: Mixer, label: str) -> Mounted:
    """Put a mixer in the place of a declared method, or around a module's own method."""
    declared = declaration(type(submodule(model, site.path)))
    if declared is None:
        return mount(model, site, mixer, label, intercept)
    run = answer if declared.parameters else intercept
    return mount(model, site, mixer, label, run, method=declared.method)


def _library(module: nn.Module) -> str:
    """Return the package that a module's code is from; a class may inherit it."""
    found = getattr(type(module).forward, "__module__", None) or ""
    return found.partition(".")[0]
