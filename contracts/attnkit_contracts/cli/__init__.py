"""The command ``attnkit``, whole.

Start with `app`, which has ``check``; `report_commands` reads what it wrote.
"""

from attnkit_contracts.cli.app import main

__all__ = ["main"]
