"""Verification: nothing counts as exported until a runtime that its users use has run it.

``run.verify_gguf`` runs a file, ``run_folder.verify_folder`` a folder; both return a ``report.Report``, which
``table`` prints.
"""
