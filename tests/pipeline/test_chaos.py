"""The short form of the chaos suite: one seed, few patients (`make chaos` runs twenty of sixty)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import chaos
import pytest

from dskprep.synthetic.s3server import S3Server


def test_a_seed_gives_the_same_events_again_and_all_kinds_come() -> None:
    import random

    events = chaos.schedule(random.Random(5), 9, 50)
    assert events == chaos.schedule(random.Random(5), 9, 50)
    assert set(chaos.EVENTS) == {event for _, event in events}
    assert len(events) == 9
    assert all(0 <= n_records < 40 for n_records, _ in events)
    few = [tuple(event for _, event in chaos.schedule(random.Random(seed), 3, 50)) for seed in range(20)]
    assert set(Counter(event for events in few for event in events)) == set(chaos.EVENTS)


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.cluster
def test_nothing_is_lost_nothing_is_double_and_every_byte_is_as_undisturbed(
    s3_server: S3Server, tmp_path: Path
) -> None:
    with chaos.stage(s3_server, 16) as the_stage:
        outcome = chaos.play(the_stage, 7, folder=tmp_path, n_events=5)
    print(outcome)
    assert outcome.problems == []
    assert sum(outcome.injected.values()) > 5
    assert len(outcome.events) >= 3
