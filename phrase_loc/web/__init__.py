"""The query page and its HTTP API: one model, several people, nothing written to disk."""
