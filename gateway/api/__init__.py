"""HTTP routes, one module for each audience."""
