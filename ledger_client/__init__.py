"""The transparency log: entries, Merkle tree, checkpoints, receipts, and the checker that trusts none of them."""

from ledger_client.amounts import SUSPENSE, Amounts, Line, nano
from ledger_client.checkpoint import Checkpoint, CheckpointError, Note, NoteSignature, Signer, Verifier
from ledger_client.cosignature import Cosignature, Quorum, QuorumError, WitnessSigner, WitnessVerifier
from ledger_client.entries import ENTRY_TYPES, JSON, MAX_ENTRY_BYTES, Entry, EntryError, entry_id
from ledger_client.fsck import Finding, fsck, fsck_derived
from ledger_client.keys import KeyFileError
from ledger_client.log import Appended, EntryConflict, Log, LogError, NotInLog, metadata
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
from ledger_client.receipt import Receipt, ReceiptError, Step, Verified, verify_receipt
from ledger_client.tiles import TILE_WIDTH, Tile, TileError, hashes_from_tiles, pack_bundle, unpack_bundle
from ledger_client.witness import Refusal, Submission, WitnessRefused
from ledger_client.witness_state import Remembered, Witness, WitnessState, WitnessStateError

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
    "Cosignature",
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
    "ProofError",
    "Quorum",
    "QuorumError",
    "Receipt",
    "ReceiptError",
    "Refusal",
    "Remembered",
    "Signer",
    "Step",
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
    "consistency_path",
    "entry_id",
    "fsck",
    "fsck_derived",
    "hashes_from_tiles",
    "inclusion_path",
    "leaf_hash",
    "metadata",
    "nano",
    "node_hash",
    "pack_bundle",
    "root_from_inclusion_path",
    "unpack_bundle",
    "verify_consistency",
    "verify_inclusion",
    "verify_receipt",
]
