"""Numbers to packed bytes: pure functions, one family of types per module, no file formats.

The contract of every codec: rows ``(n, columns)`` in, ``(n, row_bytes)`` uint8 out, the input untouched, the
same bytes on every thread and in every split of the rows. Where llama.cpp has the type, its reference
encoder is the oracle and the bytes are equal. ``contract`` says what a codec is, ``engines`` who encodes.
``decoders.decode_rows`` is the way back.

``mlx_affine``, ``fp8_block`` and ``nvfp4`` are the types of MLX and of safetensors. Their scales are tensors
of their own, so these modules give several arrays, and they count what they cannot hold.
"""
