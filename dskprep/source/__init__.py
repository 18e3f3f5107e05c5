"""Which patients a source holds, and their files.

In: the URL of a folder, an archive or a manifest. Out: cases, and the bytes of their files. Doors: `cases.cases`
lists, `files.read_case` and `files.read_series` read.
"""
