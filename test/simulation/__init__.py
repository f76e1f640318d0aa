"""A few minutes of the simulations in `bench.simulation`, with fixed seeds."""
