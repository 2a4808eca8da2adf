"""Many runs at once: Ray Tune places them, follows them, stops them and starts lost ones again. Searches and grids direct it."""
