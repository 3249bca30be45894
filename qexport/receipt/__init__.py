"""The receipt: what was made from what, how, and whether it was proven; all that cards and reports know.

Types (:mod:`~qexport.receipt.types`), one lenient reader and one writer (:mod:`~qexport.receipt.store`). The
JSON Schema in docs/ is made from the types (``make docs``).
"""
