"""The build-up search: the paper's rule, its trainings, and its result."""
