"""The course of a `fit` and of its steps."""
