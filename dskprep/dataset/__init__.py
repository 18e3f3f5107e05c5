"""What is written of a dataset, and how it is read.

In: a prepared volume and its record. Out: an OME-Zarr dataset, and readers of it. Doors: `store` and `omezarr` write,
`dataset.open_dataset` reads, `verification` checks.
"""
