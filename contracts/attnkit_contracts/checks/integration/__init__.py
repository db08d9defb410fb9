"""I: a variant in its surroundings: saved, compiled, moved to a GPU, imported, timed.

Start with `persistence`; `lint` holds that importing a plugin is cheap and does nothing else.
"""
