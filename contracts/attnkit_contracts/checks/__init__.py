"""The checks, one small function each; a folder for each group of the catalogue.

``calls`` S, ``masks`` M, ``algebra`` A, ``state`` T, ``numerics`` N, ``experts`` F, ``integration``
I. Start with `masks.visibility`; `attnkit_contracts.catalogue` says what a check is.
"""
