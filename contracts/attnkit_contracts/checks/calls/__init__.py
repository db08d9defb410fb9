"""S: what every call keeps, whatever it computes, and what it must refuse.

Start with `shapes`; `refusal` holds that promises are two-sided.
"""
