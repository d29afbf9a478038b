"""One page that says what a fine-tuning came to."""
