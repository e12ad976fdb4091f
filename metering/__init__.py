"""Usage, price, split policy and double-entry postings."""
