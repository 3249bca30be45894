"""Evidence: what is known of a model's numbers, collected from text or read from files."""
