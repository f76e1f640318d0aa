"""Tests of the control endpoint."""
