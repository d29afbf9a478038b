"""What a network's outputs say, and how well: served, and looked at in a report."""
