"""MLX folders: what ``mlx_lm convert`` writes, from one pass, and the MTP head that it drops."""
