"""Benchmarks in the xlsa17 layout: splits, images, samplers, cached features, drawn data sets."""
