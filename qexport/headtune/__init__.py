"""An MTP head and its trunk: how well it guesses, the trunk's own text, and the head tuned to that."""
