"""Which hubmesh this is."""

from importlib.metadata import version

VERSION = version("hubmesh")
