"""`python -m dskprep`."""

from dskprep.cli import run_and_exit

run_and_exit()
