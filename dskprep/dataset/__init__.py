"""What is written of a dataset, and how it is read.

In: prepared volumes and their records. Out: an OME-Zarr dataset. Doors: `omezarr.encode` and `store` write it, `index`
makes the table of its records, `dataset.open_dataset` reads it, `verification` compares it with its records,
`leftovers` deletes what no record speaks of, `upgrade` brings its metadata to OME-Zarr 0.6.
"""
