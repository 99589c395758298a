"""A real Kubernetes on this one machine, for tests: built from pinned Go modules, started and stopped in seconds.

`python -m cluster build|up|down` (from e2e/). Tests of the controller alone use only `control_plane`.
"""
