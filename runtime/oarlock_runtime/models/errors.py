"""Errors about models: what is wrong with a checkpoint, or with where it comes from. Used by every process."""

from oarlock_runtime.errors import OarlockError


class CheckpointError(OarlockError):
    """A model's files cannot be used; the message names the file, and the field or tensor at fault."""


class SourceError(OarlockError):
    """A model could not be fetched; the message names the address and what was tried."""
