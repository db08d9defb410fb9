"""Pieces of fast code that several variants share, and that a stranger's may use.

Each module is a tool of its own, imported by its path. Start with `tiles`, softmax attention in
tiles; `chunks` and `stepwise` run recurrences, `onednn` has fast matrix products,
`implementations` what many declare, `costs` what softmax costs.
"""
