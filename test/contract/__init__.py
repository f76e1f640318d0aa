"""What every implementation of an interface must do; its tests inherit these."""
