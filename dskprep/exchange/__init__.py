"""A dataset in the forms that other programs take: nnU-Net, MONAI, Croissant.

In: a dataset. Out: files for the other program, written elsewhere; the dataset is only read. Doors: `volume.write`
makes the files of one volume, `nnunet.describe`, `monai.describe` and `croissant.describe` those of the whole, `place`
keeps account of what is done.
"""
