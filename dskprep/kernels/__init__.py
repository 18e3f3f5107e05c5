"""Loops over voxels, compiled to machine code. The only home of numba.

In: numpy arrays. Out: numpy arrays, or results written into an array that was passed in. Doors: the functions of
`planes` (slices), of `masks`, `runs` and `bits` (masks in three forms), of `hulls` and of `grt123`.
"""
