"""Oarlock's runtime: checkpoints, the engine, the server and its command line."""

__version__ = "0.1.0"
