"""Many runs at once under Ray Tune; searches and grids direct them."""
