"""The kinds of units, and the letter of each in the word of a model."""

from __future__ import annotations

LETTER = {"attention": "a", "conv": "c", "mlp": "m", "blur": "b", "parallel": "p", "other": "o"}
