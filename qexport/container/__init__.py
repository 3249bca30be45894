"""Files that hold tensors, as bytes: one writer of headers and one reader, whatever the tensors mean."""
