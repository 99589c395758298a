"""Measurements of the operator, from e2e/: `python -m bench.reconcile`."""
