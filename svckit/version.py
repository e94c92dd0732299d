"""The release. Written here and nowhere else: the package, services and clients read it here."""

__version__ = "0.1.0"
