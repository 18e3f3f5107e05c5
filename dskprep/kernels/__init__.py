"""Compiled loops (numba); each has a plain twin in the tests."""
