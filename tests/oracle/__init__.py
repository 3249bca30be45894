"""The llama.cpp toolchain as a referee: what it wrote for each checkpoint of the zoo."""
