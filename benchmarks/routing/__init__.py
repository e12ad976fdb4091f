"""How near to the best possible a fleet's placement comes, simulated."""
