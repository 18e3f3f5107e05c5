"""Which patients a source holds, and their files.

In: the URL of a folder, an archive, a manifest or a file. Out: cases, and the bytes of their files. Doors:
`cases.cases` lists, `files.open_case` and `found.read_series` read.
"""
