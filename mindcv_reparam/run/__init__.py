"""Programs that run a file or a network, and what is made of their outputs: prediction, comparison, verification."""
