"""The built-in variants and hosts; each enters through the door that strangers use.

A folder for each family and one for hosts; a variant's ``__init__`` is its declaration. Start with
`softmax.self_attention`, the smallest.
"""
