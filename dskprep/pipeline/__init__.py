"""A run over a whole source, and how it is watched.

In: a source, a target, settings, and a Dask client. Out: a dataset and an account of every input. Doors: `run.run`, and
`plan.plan` for what a run would do. (The room is not called `run`, as that is the name of `dskprep.run`.)
"""
