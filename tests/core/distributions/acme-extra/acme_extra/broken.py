"""Fails when it is imported."""

raise ImportError("acme needs its compiler")
