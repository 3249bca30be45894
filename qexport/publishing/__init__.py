"""Publishing what was exported: the gate, the model card, checksums, and one commit on the Hub."""
