"""Two key/value heads for four query heads in x-transformers: which one does each read?"""

import torch
from x_transformers.attend import Attend

query = torch.zeros(1, 4, 1, 1)
key = torch.zeros(1, 2, 1, 1)
value = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)  # a head's value is its number

got = Attend().eval()(query, key, value)[0].flatten().tolist()
print("expected", [0.0, 0.0, 1.0, 1.0])
print("got     ", got)
