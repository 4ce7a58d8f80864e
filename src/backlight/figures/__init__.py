"""The paper's figures, drawn as the paper draws them, from stored results of any models.

`catalog` lists them, without torch.  Each figure shows several models on one scale; the figure of one result is its own.
"""
