"""The transparency log: entries, Merkle tree, checkpoints, receipts, and the checker that trusts none of them."""

from ledger_client.entries import ENTRY_TYPES, JSON, MAX_ENTRY_BYTES, Entry, EntryError, entry_id
from ledger_client.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_from_inclusion_path,
    verify_consistency,
    verify_inclusion,
)

__all__ = [
    "EMPTY_ROOT",
    "ENTRY_TYPES",
    "JSON",
    "MAX_ENTRY_BYTES",
    "Entry",
    "EntryError",
    "Frontier",
    "ProofError",
    "consistency_path",
    "entry_id",
    "inclusion_path",
    "leaf_hash",
    "node_hash",
    "root_from_inclusion_path",
    "verify_consistency",
    "verify_inclusion",
]
