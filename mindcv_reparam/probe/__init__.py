"""A linear probe: logistic regression on the features of a frozen network, which are computed once and kept."""
