"""The prefixes of the branches that clients push to and read. The hooks load this module: it imports nothing."""

from typing import Final

#: Requests, by their names.
REQUEST: Final = "refs/heads/request/"

#: Requests that were rejected: the last commit says why.
REJECTED: Final = "refs/heads/rejected/"
