from .dataset.audit import FoundWord, Searched, audit
from .dataset.leftovers import clean
from .dataset.past_runs import PastRun
from .dataset.record import Record
from .dataset.status import RunUnderWay, Status, status
from .dataset.upgrade import upgrade
from .dataset.verification import Finding, forget, verify
from .errors import DamagedDataset, DskprepError, InfrastructureError, Refusal, UsageError
from .labels.draw import Drawn
from .labels.read import read_labels
from .labels.values import Code, Labels, Links, Segment
from .look.comparison import Compared, Difference, compare, compare_settings
from .look.report import report
from .look.viewer import view
from .look.views import show
from .pipeline.account import RunStopped, Summary
from .pipeline.annotate import annotate, forget_labels
from .pipeline.cluster import connect, local_client
from .pipeline.export import ExportSummary, export
from .pipeline.label_account import LabelSummary
from .pipeline.observer import Observer
from .pipeline.plan import Plan, plan
from .pipeline.run import run
from .preparation.lungs.lungs import Lungs, find_lungs
from .preparation.prepare import prepare
from .preparation.prepared import Prepared
from .preparation.resample import to_spacing
from .reading.convert import to_nifti, to_sitk
from .reading.dataset import Dataset, open_dataset
from .reading.duplicates import Duplicates
from .reading.examples import Example, Examples
from .reading.joined import Joined
from .reading.patches import LungPatches, Patch
from .reading.splits import Split
from .reading.stored import StoredVolume
from .reading.stream import Stream
from .series.series import Decoded, Series
from .settings import PrepConfig, preset, read_config
from .source.found import read_series
from .volume import AIR_HU, PADDING, Grid, Volume

__all__ = [
    "AIR_HU",
    "PADDING",
    "Code",
    "Compared",
    "DamagedDataset",
    "Dataset",
    "Decoded",
    "Difference",
    "Drawn",
    "DskprepError",
    "Duplicates",
    "Example",
    "Examples",
    "ExportSummary",
    "Finding",
    "FoundWord",
    "Grid",
    "InfrastructureError",
    "Joined",
    "LabelSummary",
    "Labels",
    "Links",
    "LungPatches",
    "Lungs",
    "Observer",
    "PastRun",
    "Patch",
    "Plan",
    "PrepConfig",
    "Prepared",
    "Record",
    "Refusal",
    "RunStopped",
    "RunUnderWay",
    "Searched",
    "Segment",
    "Series",
    "Split",
    "Status",
    "StoredVolume",
    "Stream",
    "Summary",
    "UsageError",
    "Volume",
    "annotate",
    "audit",
    "clean",
    "compare",
    "compare_settings",
    "connect",
    "export",
    "find_lungs",
    "forget",
    "forget_labels",
    "local_client",
    "open_dataset",
    "plan",
    "prepare",
    "preset",
    "read_config",
    "read_labels",
    "read_series",
    "report",
    "run",
    "show",
    "status",
    "to_nifti",
    "to_sitk",
    "to_spacing",
    "upgrade",
    "verify",
    "view",
]
__version__: str
