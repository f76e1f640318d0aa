"""Tests of jitsuctl's parts, without a running Jitsu."""
