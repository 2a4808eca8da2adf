"""Makers of benchmarks: drawn pictures, stand-ins, imports of a folder of pictures."""
