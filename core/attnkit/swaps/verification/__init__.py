"""What a swap measures before it stays, start with `trial`: at the sites, beyond, and as a whole.

`trial` tries a variant beside the model's own function, `reach` on calls beyond the sample;
`outputs` and `leaks` ask the whole model; `isolation` leaves it as it was.
"""
