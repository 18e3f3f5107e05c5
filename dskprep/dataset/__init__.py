"""What is written of a dataset, and the account that is kept of it.

In: prepared volumes and their records. Out: an OME-Zarr dataset. Doors: `omezarr.encode` and `store` write it, `index`
makes the table of its records, `verification` compares it with its records, `leftovers` deletes what no record speaks
of, `upgrade` brings its metadata to OME-Zarr 0.6. The room `reading` reads it.
"""
