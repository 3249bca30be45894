"""NVFP4 W4A16 folders: 4-bit weights, activations as they are."""
