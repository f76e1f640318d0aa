"""Tests of the readiness strategies."""
