"""Real guests, hypervisors and bridges."""
