"""Pieces of fast code that several variants share, and that a stranger's may use.

Each module is a tool of its own, imported by its path. Start with `tiles`, softmax attention;
`stepwise` and `chunks` run recurrences, `onednn` has matrix products, `implementations` what many
variants declare.
"""
