"""What the nodes that serve the same zones agree on: which node owns a VM, where it runs, when it stops."""
