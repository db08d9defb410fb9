"""The command ``attnkit``, whole."""

from attnkit_contracts.cli.app import main

__all__ = ["main"]
