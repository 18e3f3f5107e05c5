"""Make the pictures page.png and dashboard.png anew: of a run over synthetic patients, in a headless Chromium.

python docs/pictures.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

import dskprep
from dskprep.pipeline import page
from dskprep.synthetic import scanner

HERE = Path(__file__).parent
N_PATIENTS = 30


class Halfway(dskprep.Observer):
    """Tells when a third of the patients are done."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def on_patient(self, summary: dskprep.Summary, records: object) -> None:  # noqa: ARG002
        if summary.account.counts.total() > N_PATIENTS // 3:
            self.reached.set()

    def on_end(self, summary: dskprep.Summary) -> None:  # noqa: ARG002
        self.reached.set()


def main() -> None:
    sys.path.insert(0, str(HERE.parent / "tests"))
    import browser

    out = Path(sys.argv[1] if len(sys.argv) > 1 else HERE)
    with tempfile.TemporaryDirectory(prefix="scans-") as folder, dskprep.local_client(2, "1.6GiB") as client:
        made = {"spacing_mm": (3.0, 1.6, 1.6), "shape": (100, 220, 220)}
        submitted = [
            client.submit(scanner.write_patient, n, f"{folder}/stage1", broken=n % 5 == 3, **made)
            for n in range(N_PATIENTS)
        ]
        client.gather(submitted)
        del submitted  # or Dask's pages go on showing them
        seen = Halfway()
        where = {"source": f"{folder}/stage1", "target": f"{folder}/stage1-1mm"}
        running = threading.Thread(target=dskprep.run, kwargs={**where, "client": client, "observers": [seen]})
        running.start()
        with browser.opened() as tab:
            tab.look(width=1500, height=760)
            seen.reached.wait()
            for name, url, words in (
                ("page", page.link(client), "running"),
                ("dashboard", client.dashboard_link, "Processing"),
            ):
                tab.open(url)
                tab.wait_for_text(words)
                tab.evaluate("new Promise(done => setTimeout(done, 3000))")  # the curves come with the next figures
                tab.screenshot(out / f"{name}.png")
        running.join()


if __name__ == "__main__":
    main()
