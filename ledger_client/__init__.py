"""The transparency log: entries, Merkle tree, checkpoints, receipts, and the checker that trusts none of them."""

from ledger_client.addresses import AddressError, from_address, to_address
from ledger_client.amounts import CONTRIBUTOR_PREFIX, PAYOUTS, SUSPENSE, Amounts, Line, nano
from ledger_client.archive import Exported, export, prove_equal, restore
from ledger_client.archive_reader import ArchiveReader, fsck_archive
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, NoteSignature, Signer, Verifier
from ledger_client.cosignature import Cosignature, Quorum, QuorumError, WitnessSigner, WitnessVerifier
from ledger_client.draft import Appended, Draft, EntryConflict, LogError, NotInLog
from ledger_client.entries import ENTRY_TYPES, JSON, MAX_ENTRY_BYTES, Entry, EntryError, entry_id
from ledger_client.fsck import Progress, fsck
from ledger_client.keys import KeyFileError
from ledger_client.laws import Fault, Finding, Law, Logged
from ledger_client.log import Log
from ledger_client.merkle import (
    EMPTY_ROOT,
    Frontier,
    GrowingTree,
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
from ledger_client.rows import Rows
from ledger_client.settlement import (
    ChainError,
    Claim,
    Payouts,
    PayoutTree,
    SettlementError,
    payable_nano,
    token_units,
    units_nano,
)
from ledger_client.stored import StoredLog, fsck_derived
from ledger_client.stores import ArchiveError, DirectoryStore, open_source, open_store
from ledger_client.tables import metadata
from ledger_client.tiles import TILE_WIDTH, Tile, TileError, hashes_from_tiles, pack_bundle, unpack_bundle
from ledger_client.witness import Refusal, Submission, WitnessRefused
from ledger_client.witness_state import Remembered, Witness, WitnessState, WitnessStateError

__all__ = [
    "CONTRIBUTOR_PREFIX",
    "EMPTY_ROOT",
    "ENTRY_TYPES",
    "JSON",
    "MAX_ENTRY_BYTES",
    "PAYOUTS",
    "SUSPENSE",
    "TILE_WIDTH",
    "AddressError",
    "Amounts",
    "Appended",
    "ArchiveError",
    "ArchiveReader",
    "ChainError",
    "Checkpoint",
    "CheckpointError",
    "Claim",
    "Cosignature",
    "DirectoryStore",
    "Draft",
    "Entry",
    "EntryConflict",
    "EntryError",
    "Exported",
    "Fault",
    "Finding",
    "Frontier",
    "GrowingTree",
    "HashAt",
    "KeyFileError",
    "Law",
    "Line",
    "Log",
    "LogError",
    "Logged",
    "NotInLog",
    "Note",
    "NoteSignature",
    "PayoutTree",
    "Payouts",
    "PeriodError",
    "Progress",
    "ProofError",
    "Quorum",
    "QuorumError",
    "Receipt",
    "ReceiptError",
    "Refusal",
    "Remembered",
    "Rows",
    "SettlementError",
    "Signer",
    "StatementSummary",
    "Step",
    "StoredLog",
    "Submission",
    "Tile",
    "TileError",
    "Verified",
    "Verifier",
    "Witness",
    "WitnessRefused",
    "WitnessSigner",
    "WitnessState",
    "WitnessStateError",
    "WitnessVerifier",
    "check_closing",
    "check_period",
    "column_of",
    "consistency_path",
    "entry_id",
    "export",
    "from_address",
    "fsck",
    "fsck_archive",
    "fsck_derived",
    "hashes_from_tiles",
    "inclusion_path",
    "leaf_hash",
    "metadata",
    "nano",
    "next_period",
    "node_hash",
    "open_source",
    "open_store",
    "pack_bundle",
    "payable_nano",
    "period_of",
    "prove_equal",
    "restore",
    "root_from_inclusion_path",
    "statements_root",
    "to_address",
    "token_units",
    "units_nano",
    "unpack_bundle",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
]
