"""F: feed-forward layers of experts.

Start with `router`: tokens are rows, experts are interchangeable; `mixtures` has the options.
"""
