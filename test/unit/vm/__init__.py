"""Tests of the life of VMs."""
