"""Many trainings: their records, the models that they share, and their processes."""
