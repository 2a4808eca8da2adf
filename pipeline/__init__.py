"""Experiments with Mg-MRN: configs, training under Ray, tracking in MLflow, the command line."""
