"""The planes of a series to what is written: an image and its lungs.

In: a native volume, or a series. Out: `prepared.Prepared`. Door: `prepare.prepare`, which calls the recipe that
the settings name; each recipe is one module of `recipes`.
"""
