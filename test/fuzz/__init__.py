"""
Fuzzers, with atheris: ``python -m test.fuzz [--seconds 60] [TARGET ...]``.

Each module here that `__main__` names is a target, something that reads input from outside. It has ``SEEDS`` (inputs to
begin with), ``WORDS`` (what input is made of) and ``one(octets)``, which gives one input to the code as it runs for
real. That fails where another error is raised than the declared ones, where an input takes more than `LONGEST` seconds
or the process more than `MEMORY` MiB, and where what was understood is not the same when it is written and read again.
"""
