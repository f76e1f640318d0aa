"""Tests of Synjitsu."""
