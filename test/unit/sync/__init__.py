"""Tests of change requests and shared configuration."""
