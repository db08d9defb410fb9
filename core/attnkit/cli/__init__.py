"""The command ``attnkit`` without ``check``, which `attnkit_contracts.cli` adds.

Start with `app`; `models` has the commands on saved models, `doctor` looks at this machine.
"""
