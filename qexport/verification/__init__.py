"""Verification: nothing counts as exported until a runtime that its users use has run it.

``run.verify`` runs a file or a folder and returns a report, which ``table`` prints.
"""
