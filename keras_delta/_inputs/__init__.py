"""The inputs of `fit`, and how they are read."""
