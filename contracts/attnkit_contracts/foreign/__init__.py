"""Functions and layers that know nothing of attnkit, made into variants that can be judged.

Start with `functions` and `layers`; `function_calls` and `layer_calls` say how each is called.
"""
