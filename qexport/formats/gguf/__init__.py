"""GGUF, the format of llama.cpp: names, layouts, mixtures of types, metadata, tokenizer."""
