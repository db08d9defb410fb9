"""N: errors against the float64 definition, forward and backward, in derived units.

Start with `errors`; `attnkit_contracts.judging.units` says how large an error may be.
"""
