"""Tests of the lowest layer."""
