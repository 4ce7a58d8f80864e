"""The paper's claims about the results of a study: those of one model, and those that compare models of different kinds."""
