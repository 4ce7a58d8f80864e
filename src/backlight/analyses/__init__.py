"""The analyses: one word each, the same in Python, on the command line, in the docs and as a folder of results."""
