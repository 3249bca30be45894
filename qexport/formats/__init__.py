"""What an artifact is on disk: each format turns a model view and options into a plan."""
