"""Loops over voxels, compiled to machine code. The only home of numba.

In: numpy arrays. Out: numpy arrays, or results written into an array that was passed in. A module is a door:
`planes` and `values` for slices; `bits`, `runs` and `masks` for masks in three forms; `components`, `distances`, `hulls`, `drawing`
and `grt123` for what is done with them.
"""
