"""The transparency log: entries, Merkle tree, checkpoints, receipts, and the checker that trusts none of them."""
