"""A network's answers and their quality, for serving and reports."""
