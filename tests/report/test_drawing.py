"""Axes, labels and curves."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from edgeft.contract.svg import bars, fit, width_of
from edgeft.report.axis import Axis, fit_axis
from edgeft.report.collect import distinct
from edgeft.report.places import overlaps, place, spread
from edgeft.report.runs import Score, smooth, thin, total


@pytest.mark.parametrize("count", range(1, 13))
def test_labels_do_not_lie_on_each_other(count: int) -> None:
    chance = random.Random(count)
    for width in (352, 860):
        bounds = (40.0, 46.0, width - 4.0, 354.0)
        points = [(chance.uniform(50, width - 20), chance.gauss(250, 40)) for _ in range(count)]
        sizes = [(chance.uniform(20, 0.3 * width), 15.0) for _ in range(count)]
        corners = place(points, sizes, bounds)
        boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
        assert overlaps(boxes) == 0
        assert all(box[0] >= bounds[0] and box[2] <= bounds[2] + 1e-6 for box in boxes)
    heights = spread([chance.gauss(100, 5) for _ in range(count)], 15, 30, 256)
    ordered = sorted(heights)
    assert all(later - earlier >= 15 - 1e-6 for earlier, later in pairwise(ordered))
    assert (ordered[0], ordered[-1]) >= (30 - 1e-6, 0)
    assert ordered[-1] <= 256 + 1e-6


def test_labels_keep_the_order_of_their_lines() -> None:
    wanted = [100.0, 99.0, 101.0, 240.0]
    heights = spread(wanted, 15, 30, 256)
    assert sorted(range(4), key=heights.__getitem__) == sorted(range(4), key=wanted.__getitem__)
    assert heights[3] == 240


def test_overlaps_are_seen() -> None:
    assert overlaps([(0, 0, 2, 2), (1, 1, 3, 3), (5, 5, 6, 6)]) == 1


@pytest.mark.parametrize("values", [[1.0, 2.0], [5.0], [0.0, 0.0], [-0.3, 0.2], [1e-5, 4.0], [3.0, 3.0000001],
                                    [1e6, 5e6], [1e-320], [0.0, 1e-320], [1e18, -1e18], [1e-300, 1e18]])
def test_an_axis_holds_its_values_and_round_ticks(values: list[float]) -> None:
    axis = fit_axis(values, 300, 20)
    pixels = [axis.at(value) for value in values]
    assert all(20 <= pixel <= 300 for pixel in pixels)
    assert sorted(pixels, reverse=True) == [axis.at(value) for value in sorted(values)]
    assert 1 <= len(axis.ticks()) <= 8
    assert all(axis.low - 1e-9 <= tick <= axis.high + 1e-9 for tick in axis.ticks())


def test_losses_over_orders_are_drawn_on_a_logarithmic_axis() -> None:
    assert fit_axis([1e-4, 2.0], 300, 20).log
    assert not fit_axis([1.2, 2.0], 300, 20).log
    assert not fit_axis([0.0, 2.0], 300, 20).log
    assert Axis(1, 100, 0, 200, log=True).at(10) == pytest.approx(100)


def test_smoothing_and_thinning() -> None:
    flat = [(float(step), 2.0) for step in range(1000)]
    assert all(loss == pytest.approx(2.0) for _, loss in smooth(flat))
    noisy = [(step, loss + (-1) ** int(step)) for step, loss in flat]
    assert max(loss for _, loss in smooth(noisy)[200:]) < 2.1
    assert len(thin(flat)) == 240
    assert (thin(flat)[0], thin(flat)[-1]) == (flat[0], flat[-1])


def test_words_are_cut_in_the_middle() -> None:
    assert fit("short", 100) == "short"
    cut = fit("a-rather-long-name-of-a-run-1", 100)
    assert width_of(cut) <= 100
    assert cut[0] == "a"
    assert cut[-1] == "1"
    assert width_of("日本") > width_of("ab")


def test_several_sets_count_with_their_tokens() -> None:
    both = total([Score("a", 1.0, 2.0, 30), Score("b", 3.0, 4.0, 10)])
    assert both is not None
    assert (both.loss, both.before, both.amount) == (1.5, 2.5, 40)
    assert total([]) is None


def test_folders_of_one_name_are_told_apart() -> None:
    assert distinct([Path("/x/a/run"), Path("/x/b/run"), Path("/x/c")]) == ["a/run", "b/run", "c"]


def test_bars_are_as_long_as_their_values_and_go_left_below_zero() -> None:
    drawn, height = bars([("loss", [("a", 0.5), ("b", -0.25), ("c", 0.0)])], lambda label: f"of-{label}", width=300,
                         labels=100, values=50, margin=0)
    rows = re.findall(r'class="of-(\w) bar" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', "".join(drawn))
    found = {name: (float(start), float(size)) for name, start, size in rows}
    assert found["a"][1] == pytest.approx(2 * found["b"][1])
    assert found["b"][0] + found["b"][1] == pytest.approx(found["a"][0])  # they meet at 0
    assert found["b"][0] == 100
    assert height > 3 * 20
    assert ">0.500<" in "".join(drawn)
    assert ">20.0<" in "".join(bars([("x", [("a", 20.0)])], str)[0])
    assert ">20.00<" in "".join(bars([("x", [("a", 20.0)])], str, decimals=2)[0])
