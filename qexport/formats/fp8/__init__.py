"""FP8 in tiles of 128 by 128: the layout of Qwen's own ``*-FP8`` repositories, and llm-compressor's FP8_BLOCK."""
