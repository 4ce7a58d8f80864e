"""Loading a model by name: one module per source of models."""
