"""Checks of this machine before a run, each with a remedy."""
