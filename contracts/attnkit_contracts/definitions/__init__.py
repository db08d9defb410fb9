"""What is right, in float64, and what is wrong on purpose.

Start with `oracle`, one definition per family; `answers` keeps what it answered, `mistakes` has
the wrong variants that every check must tell from the right one.
"""
