"""Reading checkpoints, on disk and on the Hub, and planning the safetensors files of a new one.

Everything above sees named tensors made of rows (:mod:`qexport.checkpoint.tensors`); where they are stored,
and how that is checked, stays in here.
"""
