"""Training: the loop, its sampling and images, and a run in a folder."""
