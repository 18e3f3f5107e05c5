"""What people look at: pictures of a volume, a comparison of two, the report on a dataset.

In: a dataset, or a prepared volume. Out: PNG, HTML, figures. Doors: `views.show`, `viewer.view`, `picture.draw`,
`refused.draw`, `comparison.compare`, `report.report`.
"""
