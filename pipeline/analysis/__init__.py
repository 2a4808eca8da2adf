"""What runs say together: pure functions from their figures to statistics."""
