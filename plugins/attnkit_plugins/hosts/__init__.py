"""Adapters to libraries whose models can receive a variant; `attnkit.hosts` has the protocol.

Start with `timm`, the smallest; `own` serves modules that `attnkit.declare` tells of.
"""
