"""What checks are run on: an operation of one implementation, or the layer of a variant.

Start with `subject`; `operations` and `layers` are its two kinds.
"""
