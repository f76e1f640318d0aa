"""The virtual machines: what state each is in, who waits for it, and when it may go."""
