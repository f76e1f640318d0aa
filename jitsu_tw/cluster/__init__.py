"""What several Jitsus that serve the same zones agree on: who owns a VM, where it runs, when it stops."""
