"""What the README claims of the gateway's hot path, measured beside its peers."""
