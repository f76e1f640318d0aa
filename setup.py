"""Everything is in setup.cfg; older tools ask for this file."""

from setuptools import setup

setup()
