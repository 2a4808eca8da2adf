"""Benchmarks: each prints medians over repeats and ratios within one run."""
