"""M: who may look at what. Structure is tested exactly, never with a tolerance.

Start with `visibility`; `forms`, `padding`, `documents` and `context` say the same of other forms.
"""
