"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("patchdrop")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "unknown"
