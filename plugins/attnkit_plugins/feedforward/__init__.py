"""Variants that mix no tokens: `moe`, a mixture of experts."""
