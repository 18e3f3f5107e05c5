"""The tables of the Imaging Data Commons (IDC), which the package `idc-index-data` brings along. The home of duckdb."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from importlib.metadata import version
from typing import NamedTuple

from dskprep.errors import UsageError
from dskprep.plain import in_one_line

ID_COLUMNS = ("crdc_series_uuid", "series_aws_url", "SeriesInstanceUID")
"""Columns by which series are named, the best first: a UUID is that of one version of a series."""
OTHER_TABLES = ("prior_versions_index", "collections_index", "analysis_results_index")
"""What SQL can ask for beside the table of series, `index`; idc-index gives them these names too."""

_SERIES = """
    WITH origins AS (
        SELECT source.source_doi AS doi, source.citation AS citation
        FROM (SELECT unnest(sources) AS source FROM collections_index)
        UNION ALL SELECT source_DOI, citation FROM analysis_results_index
    ), citations AS (SELECT lower(doi) AS doi, min(citation) AS citation FROM origins GROUP BY 1)
    SELECT collection_id, PatientID, StudyInstanceUID, SeriesInstanceUID, Modality, instanceCount,
        CAST(round(1e6 * series_size_MB) AS BIGINT), coalesce(license_short_name, ''), coalesce(source_DOI, ''),
        coalesce(citation, ''), aws_bucket, crdc_series_uuid, coalesce(Manufacturer, ''),
        coalesce(ManufacturerModelName, ''), coalesce(SeriesDescription, '')
    FROM index LEFT JOIN citations ON doi = lower(source_DOI)
    WHERE {condition}
    ORDER BY collection_id, PatientID, StudyInstanceUID, SeriesInstanceUID
"""


class Series(NamedTuple):
    """One row of the table: a series in its present version. `bucket` is that at Amazon, `citation` is HTML."""

    collection: str
    patient: str
    study: str
    uid: str
    modality: str
    n_files: int
    n_bytes: int
    licence: str
    doi: str
    citation: str
    bucket: str
    uuid: str
    manufacturer: str
    model: str
    description: str

    def named_by(self, column: str) -> str:
        """Return what names it in one of ID_COLUMNS."""
        return (self.uuid, f"s3://{self.bucket}/{self.uuid}/*", self.uid)[ID_COLUMNS.index(column)]


def id_column(columns: Collection[object]) -> str | None:
    """Return the column by which a table names series, if it has one."""
    return next((name for name in ID_COLUMNS if name in columns), None)


class Catalogue:
    """The tables, for one source, which errors name. No other file can be read through it, and none written."""

    def __init__(self, source: str) -> None:
        try:
            import duckdb
            import idc_index_data
        except ImportError as error:
            raise UsageError(
                f"{source:.200}: expected the tables of the Imaging Data Commons, found none installed; in the clone "
                "of dskprep, pip install '.[idc]'"
            ) from error
        self._source = source
        self.release = f"IDC v{version('idc-index-data').partition('.')[0]}"
        self._tables = duckdb.connect()
        paths = {"index": str(idc_index_data.IDC_INDEX_PARQUET_FILEPATH)}
        paths |= {name: str(idc_index_data.INDEX_METADATA[name]["parquet_filepath"]) for name in OTHER_TABLES}
        for name, path in paths.items():
            self._tables.read_parquet(path).create_view(name)
        allowed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths.values())
        for setting in (
            f"allowed_paths = [{allowed}]",
            "enable_external_access = false",
            "python_enable_replacements = false",
            "lock_configuration = true",
        ):
            self._tables.execute(f"SET {setting}")

    def ct_of(self, collections: Sequence[str]) -> list[Series]:
        """Return the CT series of collections. Raises UsageError if one does not exist, or has none."""
        n_ct: dict[str, int] = dict(
            self._tables.execute(
                "SELECT collection_id, count(*) FILTER (Modality = 'CT') FROM index GROUP BY 1"
            ).fetchall()
        )
        for name in collections:
            if name not in n_ct:
                like = " or ".join(difflib.get_close_matches(name, n_ct, n=3))
                hint = f"; did you mean {like}?" if like else "; correct its name, or upgrade idc-index-data"
                raise UsageError(f"{self._source:.200}: {self.release} has no collection {name!r:.80}{hint}")
            if not n_ct[name]:
                raise UsageError(f"{self._source:.200}: the collection {name} has no CT series; choose another")
        return self._series("collection_id IN (SELECT unnest(?::VARCHAR[])) AND Modality = 'CT'", collections)

    def named(self, column: str, names: Sequence[str]) -> list[Series]:
        """Return the series that have these names in one of ID_COLUMNS."""
        return self._series(f"{column} IN (SELECT unnest(?::VARCHAR[]))", names)

    def select(self, sql: str) -> tuple[str, list[str]]:
        """Return one of ID_COLUMNS, and what it holds in the rows that the user's SQL selects.

        Raises UsageError if that is not one SELECT, if it fails, or has none of these columns.
        """
        import duckdb

        try:
            statements = self._tables.extract_statements(sql)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise UsageError(f"{self._source:.200}: expected the name of a collection or one SELECT, found neither")
            found = self._tables.execute(statements[0])
            columns = [name for name, *_ in found.description]
            if (column := id_column(columns)) is None:
                raise UsageError(
                    f"{self._source:.200}: expected one of the columns {', '.join(ID_COLUMNS)}, found "
                    f"{', '.join(columns):.200}; select one of them too"
                )
            place = columns.index(column)
            return column, [str(row[place]) for row in found.fetchall()]
        except duckdb.Error as error:
            raise UsageError(f"{self._source:.200}: the SQL cannot be done: {in_one_line(error, 300)}") from error

    def _series(self, condition: str, values: Sequence[str]) -> list[Series]:
        rows = self._tables.execute(_SERIES.format(condition=condition), [list(values)]).fetchall()
        return [Series(*row) for row in rows]
