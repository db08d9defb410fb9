"""The two calls `attnkit.attention` and `attnkit.recurrence`, each in the module of its name.

Start with `attention`. Both check their arguments (`arguments`), let `attnkit.choice` decide, and
call what was chosen; `graph_operator` is what a recurrence is in a compiled graph.
"""
