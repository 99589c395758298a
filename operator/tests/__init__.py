"""Tests of the operator. A package, so that pytest does not take `operator/` for Python's own module of that name."""
