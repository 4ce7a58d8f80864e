"""Analyses within somebody else's training loop: a few numbers every so many steps, and the training as it would be without."""
