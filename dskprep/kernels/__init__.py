"""Loops over voxels, compiled to machine code. The only home of numba.

In: numpy arrays. Out: numpy arrays, or results written into an array that was passed in. A module is a door:
`planes` and `values` for slices; `bits`, `runs` and `masks` for masks in three forms; `components`, `distances`,
`hulls`, `rays`, `drawing` and `grt123` for what is done with them. Their loops get the arrays that they need from
Python: each kind of array that compiled code makes takes time to compile too.
"""
