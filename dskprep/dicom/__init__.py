"""The bytes of DICOM files to slices.

In: a file's name and content. Out: slices whose pixels are still encoded, damage, and files set aside. Doors:
`contents.Contents.add` reads a file, `pixels.stored_values` decodes a frame. Nothing here knows of a volume.
"""
