"""Volumes in one file, or in a header and a file of voxels: NIfTI, NRRD, MetaImage.

In: the bytes of a file. Out: its header in one form for all formats, and its stored values plane by plane. Doors:
`read.read_header` and `voxels.planes`; `names` tells by their names which files are such volumes.
"""
