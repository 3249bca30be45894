"""FP8 in tiles of 128 by 128, as in Qwen's own ``*-FP8`` repositories, and two schemes of llm-compressor."""
