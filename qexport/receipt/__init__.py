"""The receipt: what was made from what, how, and whether it was proven; all that cards and reports know.

Types (:mod:`~qexport.receipt.types`), one lenient reader and one writer (:mod:`~qexport.receipt.store`), and
the JSON Schema made from the types (:mod:`~qexport.receipt.schema`).
"""
