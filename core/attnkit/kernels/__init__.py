"""Pieces of fast code that several variants share, and that a stranger's may use.

Each module is a tool of its own, imported by its path: `tiles` for softmax attention, `stepwise`
and `chunks` for recurrences, `onednn` for matrix products; `implementations` has what many declare.
"""
