"""The transparency log: entries, Merkle tree, checkpoints, receipts, and the checker that trusts none of them."""

from ledger_client.amounts import SUSPENSE, Amounts, Line, nano
from ledger_client.checkpoint import Checkpoint, CheckpointError, KeyFileError, Note, NoteSignature, Signer, Verifier
from ledger_client.draft import Appended, Draft, EntryConflict, LogError, NotInLog
from ledger_client.entries import ENTRY_TYPES, JSON, MAX_ENTRY_BYTES, Entry, EntryError, entry_id
from ledger_client.fsck import Finding, fsck, fsck_derived
from ledger_client.log import Log
from ledger_client.merkle import (
    EMPTY_ROOT,
    Frontier,
    HashAt,
    ProofError,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_from_inclusion_path,
    verify_consistency,
    verify_inclusion,
)
from ledger_client.periods import (
    PeriodError,
    StatementSummary,
    check_closing,
    check_period,
    column_of,
    next_period,
    period_of,
    statements_root,
)
from ledger_client.receipt import Receipt, ReceiptError, Step, Verified, verify_receipt
from ledger_client.tables import metadata
from ledger_client.tiles import TILE_WIDTH, Tile, TileError, hashes_from_tiles, pack_bundle, unpack_bundle

__all__ = [
    "EMPTY_ROOT",
    "ENTRY_TYPES",
    "JSON",
    "MAX_ENTRY_BYTES",
    "SUSPENSE",
    "TILE_WIDTH",
    "Amounts",
    "Appended",
    "Checkpoint",
    "CheckpointError",
    "Draft",
    "Entry",
    "EntryConflict",
    "EntryError",
    "Finding",
    "Frontier",
    "HashAt",
    "KeyFileError",
    "Line",
    "Log",
    "LogError",
    "NotInLog",
    "Note",
    "NoteSignature",
    "PeriodError",
    "ProofError",
    "Receipt",
    "ReceiptError",
    "Signer",
    "StatementSummary",
    "Step",
    "Tile",
    "TileError",
    "Verified",
    "Verifier",
    "check_closing",
    "check_period",
    "column_of",
    "consistency_path",
    "entry_id",
    "fsck",
    "fsck_derived",
    "hashes_from_tiles",
    "inclusion_path",
    "leaf_hash",
    "metadata",
    "nano",
    "next_period",
    "node_hash",
    "pack_bundle",
    "period_of",
    "root_from_inclusion_path",
    "statements_root",
    "unpack_bundle",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
]
