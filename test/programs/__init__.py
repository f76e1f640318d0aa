"""Jitsu, Synjitsu and jitsuctl as processes, among other programs; no guest boots."""
