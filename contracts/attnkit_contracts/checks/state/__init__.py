"""T: what was computed at once equals what was computed in pieces, with state carried along.

Start with `pieces`; `steps` adds masks and options, `decode` long rolls of the state.
"""
