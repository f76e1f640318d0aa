"""Tests of the structure: layers, sizes, and who calls whom."""
