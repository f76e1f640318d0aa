"""The laboratory, and the demo that `make demo` runs in it."""
