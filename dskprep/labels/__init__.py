"""Label objects to labels on an image's grid.

In: the bytes of a DICOM SEG or RTSTRUCT, a LIDC-IDRI XML file, a mask volume, or a table of points; and the grid of an
image. Out: what the object asks to be linked to, its segments by name, each of them drawn on the grid, and its points.
Doors: `read.read_labels`, and the methods of `values.Labels`. Nothing here stores a label, or knows of a dataset.
"""
