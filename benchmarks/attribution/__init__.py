"""How much of the money each estimator misplaces, and at what cost."""
