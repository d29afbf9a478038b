"""What `fit` takes, and how it is read."""
