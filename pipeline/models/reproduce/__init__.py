"""Runs a finished run again from what is recorded of it, and compares the two figure by figure."""
