"""Experiment configs: YAML files, their composition, their checks, and the identity of an experiment."""
