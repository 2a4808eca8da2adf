"""Search for granularity levels, loss weights and the rest, on the `tune` split alone."""
