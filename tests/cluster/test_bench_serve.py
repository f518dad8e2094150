"""The load that is sent, the figures that are made of what came, and the page: all without a cluster."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from cluster.bench.page import Line, PagePlot, page, round_ticks, svg, svg_file
from cluster.bench.serve_client import ShotRecord
from cluster.bench.serve_figures import Limits, figures, mean_gap, percentiles, under_way
from cluster.bench.serve_load import LoadShape, shots
from cluster.errors import ConfigError

SHAPE = LoadShape("poisson", 5.0, 4.0, "sharegpt", None, None, 1.0, 4096, 4096, 0, 1, 7)


@pytest.mark.parametrize(("arrival", "cv"), [("fixed", 0.0), ("poisson", 1.0), ("bursts", 4.0)])
def test_arrivals_have_the_rate_and_the_burstiness_that_was_asked_for(arrival: str, cv: float) -> None:
    times = np.array([shot.at for shot in shots(replace(SHAPE, arrival=arrival, prompt=1, output=1), 20_000, 100)])
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / SHAPE.rate, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.15, abs=1e-9)


def test_lengths_are_those_of_the_trace_and_within_bounds() -> None:
    drawn = list(shots(replace(SHAPE, max_prompt=100_000, max_output=100_000), 3_000, 1_000))
    assert np.mean([len(shot.prompt) for shot in drawn]) == pytest.approx(161, rel=0.1)
    assert np.mean([shot.num_output for shot in drawn]) == pytest.approx(338, rel=0.1)
    bounded = list(shots(replace(SHAPE, max_prompt=50, max_output=9, shared_prefix=20, num_prefixes=3), 500, 1_000))
    assert max(len(shot.prompt) for shot in bounded) == 50 and max(shot.num_output for shot in bounded) == 9
    assert min(len(shot.prompt) for shot in bounded) == 21
    assert len({shot.prompt[:20] for shot in bounded}) == 3 and len({shot.prompt for shot in bounded}) == 500
    assert all(16 <= token < 1_000 for shot in bounded for token in shot.prompt)


def test_the_same_seed_is_the_same_load_and_shares_of_it_fit_together() -> None:
    whole = list(shots(SHAPE, 40, 500))
    assert whole == list(shots(SHAPE, 40, 500)) != list(shots(replace(SHAPE, seed=8), 40, 500))


@pytest.mark.parametrize("wrong", [{"arrival": "never"}, {"trace": "x"}, {"rate": 0.0}, {"shared_prefix": 4096}])
def test_a_load_that_cannot_be_is_one_line(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        replace(SHAPE, **wrong)


def record(due: float, sent: float, tokens: list[tuple[float, int]], end: float, error: str = "") -> dict[str, object]:
    (shot,) = shots(replace(SHAPE, prompt=4, output=4), 1, 100)
    made = ShotRecord(shot, due)
    made.sent, made.end, made.error = sent, end, error
    for now, count in tokens:
        made.tokens(count, now)
    return made.plain()


def test_figures_count_from_when_a_request_was_due() -> None:
    records = [
        record(0.5, 0.5, [(0.6, 1)], 0.7),  # in the warm-up
        record(1.0, 1.1, [(1.4, 1), (1.8, 2), (2.0, 1)], 2.1),
        record(2.0, 2.0, [(2.2, 3)], 2.3),
        record(2.0, 2.0, [(2.1, 1), (3.0, 1)], 3.0),
        record(2.5, 2.5, [], 2.6, "it broke"),
    ]
    found = figures("x", records, 1.0, Limits(0.3, 0.5), 0.25)
    assert (found.num_sent, found.num_failed, found.num_output, found.num_prompt) == (4, 1, 9, 12)
    assert found.span_s == pytest.approx(2.0) and found.output_per_s == pytest.approx(4.5)
    assert sorted(found.first) == pytest.approx([0.1, 0.2, 0.4])
    # Two tokens that came together share the time; those that came with the first make no gap.
    assert sorted(found.gaps) == pytest.approx([0.2, 0.2, 0.2, 0.9])
    assert mean_gap(records[1]) == pytest.approx(0.2)
    assert found.num_good == 1 and found.late.max() == pytest.approx(0.1)
    assert percentiles(found.first)[50] == pytest.approx(0.2)
    assert percentiles(np.zeros(0)) == {50: 0.0, 90: 0.0, 95: 0.0, 99: 0.0}
    times, open_now, rate = under_way(records)
    assert open_now.max() == 3 and (rate * (times[1] - times[0])).sum() == pytest.approx(10, rel=0.05)


def test_the_page_is_well_formed_and_its_lines_stay_inside() -> None:
    lines = [Line("a <b>", [0.0, 1.0, 4.0], [0.0, 0.5, 1.0]), Line("c", [0.0, 2.0], [0.2, 0.9])]
    drawn = PagePlot("First & last", "ms", "share", lines)
    tree = ET.fromstring(svg(drawn))
    points = re.findall(r"([\d.]+),([\d.]+)", " ".join(line.get("points", "") for line in tree.iter("polyline")))
    assert len(points) == 5
    assert all(0 <= float(x) <= 560 and 0 <= float(y) <= 300 for x, y in points)
    assert svg(PagePlot("nothing", "x", "y", [Line("", [], [])])).endswith("</svg>")
    powers = [Line("a", [1.0, 16.0, 256.0], [3.0, 2.0, 1.0])]
    both = ET.fromstring(svg_file([drawn, PagePlot("by <size>", "slots", "ms", powers, is_log=True)]))
    marks = [float(dot.get("cx", "")) for dot in both.iter("{http://www.w3.org/2000/svg}circle")][-3:]
    assert marks[1] - marks[0] == pytest.approx(marks[2] - marks[1], abs=0.2)
    text = page("t", ["a note"], {"table": [{"name": "<x>", "value": 1234.5}]}, [drawn])
    assert "&lt;x&gt;" in text and "1,234" in text and "<x>" not in text


@pytest.mark.parametrize("most", [0.0003, 0.97, 1.0, 7.0, 13.9, 99.0, 1_234.0, 5_000_001.0])
def test_ticks_are_figures_that_people_read_at_once(most: float) -> None:
    ticks = round_ticks(most)
    assert ticks[0] == 0 and ticks[-1] >= most * 0.999 and ticks[-2] < most and 3 <= len(ticks) <= 7
    for tick in ticks[1:]:
        digits = f"{tick:.6e}".split("e")[0].rstrip("0").replace(".", "")
        assert len(digits) <= 3, tick


def test_a_limit_is_drawn_and_named() -> None:
    lines = [Line("a", [1.0, 30.0], [0.0, 1.0])]
    text = svg(PagePlot("first token", "ms", "share", lines, limits={"limit 200 ms": 200.0}))
    assert "limit 200 ms" in text and "stroke-dasharray" in text and ">200<" in text
    assert "stroke-dasharray" not in svg(PagePlot("first token", "ms", "share", lines))
