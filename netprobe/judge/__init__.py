"""The ledger against what was expected: where, by which rule, what changed. Pure."""
