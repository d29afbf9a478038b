"""A one-page report on fine-tuned models."""
