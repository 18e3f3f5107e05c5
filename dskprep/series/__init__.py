"""The slices of one series to one volume in Hounsfield units (HU), or a refusal that says why not.

In: slices of the room `dicom`. Out: planes of HU and their grid. Doors: `series.assemble` finds the grid of a
`Series`, `Series.decode` gives its planes.
"""
