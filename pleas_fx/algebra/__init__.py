"""Numerical tools without any network in sight: sums, solves, assignments, selections."""
