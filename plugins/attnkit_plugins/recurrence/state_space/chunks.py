"""State-space duality: within a chunk a masked matrix product, between chunks a recurrence.

q . k and the products with the state are done once for all heads of a group; the arithmetic is
`attnkit.kernels.chunks`.

Source: Dao & Gu 2024, https://arxiv.org/abs/2405.21060, section 6.
"""

from __future__ import annotations

import functools

from attnkit.kernels import chunks

scan = functools.partial(chunks.scan, span=chunks.by_head)
