"""Verbs on trained models: predict, explain, promote, reproduce."""
