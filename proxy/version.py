"""The version of hubmesh that is installed."""

from importlib.metadata import version

VERSION = version("hubmesh")
