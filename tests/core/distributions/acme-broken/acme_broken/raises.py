"""Fails when it is imported, as on a machine without its driver."""

raise OSError("no acme driver\non this machine")
