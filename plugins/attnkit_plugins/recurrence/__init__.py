"""Variants that carry a state instead of a cache.

Start with `linear`; `gated_linear` adds decays, `state_space` a convolution and a gate.
"""
