"""One training run under Ray Train."""
