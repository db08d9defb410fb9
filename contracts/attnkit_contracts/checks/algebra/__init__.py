"""A: identities that hold without any reference, and so would show a wrong oracle.

Start with `linearity`; `identities` has those of softmax, `extremes` large and small numbers.
"""
