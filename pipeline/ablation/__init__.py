"""Ablation grids: planned before they run, launched where something is missing, compared and reported."""
