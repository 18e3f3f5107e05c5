"""Synthetic patients as DICOM files, and an S3 server, to try everything on.

In: a seed. Out: volumes with their true lungs, DICOM files, a bucket on this machine. Doors: `phantom.make_phantom`,
`scanner.write_patients`, `s3server.S3Server`.
"""
