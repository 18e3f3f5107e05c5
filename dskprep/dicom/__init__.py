"""The bytes of a DICOM file to slices.

In: a file's name and content. Out: slices whose pixels are still encoded, and what else the files were. Doors:
`contents.Contents.add` reads a file, `pixels.stored_values` decodes a frame. Nothing here knows of a volume.
"""
