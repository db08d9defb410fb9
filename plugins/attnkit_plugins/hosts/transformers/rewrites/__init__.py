"""Attention layers of transformers that do not call its interface, written anew so that they do.

One file for each family of models: a subclass of its layer, of the same name, whose ``forward`` is
the same but for the arithmetic, which it leaves to the interface. `rewriter` has the table.
"""
