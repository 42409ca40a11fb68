"""Pages to look at: one HTML file that asks nothing of a network. What stands on one is said by whoever makes it."""
