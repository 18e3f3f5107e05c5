"""How a dataset is read: its volumes and labels, chosen, joined, split by patient, and drawn from for training.

In: a dataset that was written. Out: volumes, patches and batches. Doors: `dataset.open_dataset` opens it, `splits`
parts it, `duplicates` finds what is in it twice, `patches`, `examples` and `stream` draw from it.
"""
