"""How often `auto` finds the model that a question is for."""
