"""Running many trainings: their records, shared models, and processes."""
