"""Functions and layers that know nothing of attnkit, made into variants that can be judged.

Start with `conventions`: all that can be declared. `functions` and `layers` are the doors,
`function_calls` and `layer_calls` say how each is called.
"""
