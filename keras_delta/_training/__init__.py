"""One `fit`, and one of its steps."""
