"""What the README claims of metering and the ledger, measured."""
