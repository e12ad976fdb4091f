"""Documents people own, the passages in them, and the vector index that finds them."""
