"""Tests of several Jitsus together."""
