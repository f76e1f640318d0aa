"""Synjitsu: stands in for virtual machines that are booting, so that no first packet is lost."""
