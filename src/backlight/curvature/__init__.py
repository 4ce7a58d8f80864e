"""Curvature of the training loss: the loss and its batches, the Hessian as an operator, and models with perturbed weights."""
