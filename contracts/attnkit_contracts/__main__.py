"""``python -m attnkit_contracts`` is ``attnkit``, for an environment without its script."""

from attnkit_contracts.cli.app import main

main()
