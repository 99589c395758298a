"""Carries out the same decisions on this machine: pods become process groups with loopback addresses."""
