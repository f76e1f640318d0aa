"""Tests of one class or module each, by layer."""
