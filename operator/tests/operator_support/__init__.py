"""Helpers of the operator's tests."""
