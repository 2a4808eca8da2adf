"""Predictions on anybody's pictures, by a run's model, a registered one or an exported file."""
