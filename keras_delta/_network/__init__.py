"""Networks as graphs: copies, cuts, pairs, taps, heads."""
