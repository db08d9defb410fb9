"""Pieces of fast code that several variants share, and that a stranger's may use.

Each module is a tool of its own, imported by its path; `onednn` has the matrix products.
"""
