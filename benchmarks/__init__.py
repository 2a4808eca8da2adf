"""Scripts that measure speed: `python -m benchmarks.NAME --help`. Nothing of the product imports them."""
