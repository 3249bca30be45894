"""The repaired checkpoint itself."""
