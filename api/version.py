"""Which Winnow this is."""

from importlib import metadata


def version() -> str:
    """Returns the installed distribution's version; "unknown" when run without an installation."""
    try:
        return metadata.version("winnow")
    except metadata.PackageNotFoundError:
        return "unknown"
