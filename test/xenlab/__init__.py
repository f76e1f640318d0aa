"""Xen for the tests, on a machine without Xen."""
