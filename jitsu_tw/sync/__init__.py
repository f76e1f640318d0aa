"""Change requests by git, and the configuration that several Jitsus share."""
