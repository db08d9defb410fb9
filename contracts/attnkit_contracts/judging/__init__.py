"""When a difference is an error: how large it may be, and where it is.

Start with `units`; `outputs` and `gradients` compare, `everything` does both of one call.
"""
