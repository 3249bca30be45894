"""The one pass: plans in, files out. Knows nothing about formats."""
