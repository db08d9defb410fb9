"""What checks give to a subject: how a call is drawn, laid out in memory, and varied.

Start with `calls`; `layouts` has strides and offsets, `factors` which
options to try together.
"""
