"""From checks and variants to a report.

Start with `runner`; `instance` is one check on one subject, `proofs` tries the checks of
extensions on wrong variants.
"""
