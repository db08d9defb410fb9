"""Variants of softmax attention, exact over the keys that their masks allow.

Start with `self_attention`, one head, to read; `multi_head` takes every option.
"""
