"""Named mistakes: each is a definition with one deliberate error.

Start with `mistake`, what one is; `softmax`, `recurrence` and `mixture` list those of a family.
"""
