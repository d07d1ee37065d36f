"""Reports: what they say, that they say it only when it is so, and that the page stands alone."""

import base64
import io
import json
import math
from html.parser import HTMLParser

import pytest
from PIL import Image

from mvray.experiment.exhibits import Column, Table
from mvray.metrics.classification import mean_interval
from mvray.reports import page as pages

ACCURACY = Column("test/accuracy", "accuracy (%)", factor=100, digits=1)
ENTROPY = Column("entropy", "attention entropy (bits)", digits=2)
TABLE = Table(rows=(), columns=(ACCURACY, ENTROPY), note="Test pages are touched once.")


def row(name, accuracies, entropies=None, paper=None):
    values = {"test/accuracy": accuracies, "entropy": entropies or [None] * len(accuracies)}
    means, intervals = {}, {}
    for metric, found in values.items():
        known = [value for value in found if value is not None]
        mean, low, high = mean_interval(known) if known else (None, None, None)
        means[metric], intervals[metric] = mean, None if low is None else [low, high]
    papers = {} if paper is None else {"test/accuracy": paper}
    return {"name": name, "values": values, "mean": means, "interval95": intervals, "paper": papers}


def step(name, seed, state="finished", seconds=75.0):
    seconds = seconds if state == "finished" else None
    return {
        "name": name,
        "seed": seed,
        "id": "0123456789ab",
        "path": f"/runs/{name}-0123456789ab",
        "state": state,
        "seconds": seconds,
        "metrics": {},
    }


def a_report(rows, steps=()):
    return {"job": "gradcam_masking", "steps": list(steps), "table": {"rows": rows}}


THREE = [
    row("A: plain", [0.84, 0.851, 0.848], [2.9, 2.91, 2.92], paper=0.852),
    row("B: erasing", [0.862, 0.838, 0.87]),
    row("proposed", [0.871, 0.882, 0.876], [2.5, 2.4, None], paper=0.878),
]


def test_verdict_pairs_seeds():
    """Both rows jump together from seed to seed: only the paired difference shows that one is above the other."""
    low, high = row("low", [0.50, 0.70, 0.90]), row("high", [0.51, 0.712, 0.911])
    assert low["interval95"]["test/accuracy"][1] > high["mean"]["test/accuracy"]
    said = pages.verdict([low, high], ACCURACY)
    assert said.startswith("accuracy (%): “high” is best with 71.1. It is 1.1 above “low” (95 % interval 0.9 to 1.3,")
    assert said.endswith("3 seeds: zero is outside, so that is more than chance).")


def test_verdict_names_the_best_row_whichever_it_is():
    rows = [row("plain", [0.9, 0.8, 0.7]), row("proposed", [0.7, 0.9, 0.6])]
    said = pages.verdict(rows, ACCURACY)
    assert "“plain” is best with 80.0" in said
    assert "zero is inside: a difference is not shown" in said


def test_verdict_concludes_nothing_from_one_seed():
    said = pages.verdict([row("plain", [0.8]), row("proposed", [0.9])], ACCURACY)
    assert said.endswith("“proposed” is best with 90.0. With less than two seeds nothing can be concluded from that.")
    one_pair = [row("plain", [0.8, None]), row("proposed", [0.9, 0.91])]
    assert "nothing can be concluded" in pages.verdict(one_pair, ACCURACY)


def test_verdict_of_equal_rows_names_all_of_them():
    said = "accuracy (%): “plain” and “proposed” are equal with 90.0."
    rows = [row("plain", [0.9]), row("erasing", [0.8]), row("proposed", [0.9])]
    assert pages.verdict(rows, ACCURACY).startswith(f"{said} With less than two seeds nothing can")
    rows = [row("plain", [0.9, 0.8999]), row("erasing", [0.8, 0.8]), row("proposed", [0.8998, 0.9])]
    assert pages.verdict(rows[::2], ACCURACY) == said
    assert pages.verdict(rows, ACCURACY).startswith(f"{said} “plain” is 10.0 above “erasing” (95 % interval 9.9 to")
    rows = [row("plain", [0.8, 0.9, 0.7]), row("higher", [0.8001, 0.9001, 0.7001])]
    assert pages.verdict(rows, ACCURACY).startswith("accuracy (%): “higher” is best with 80.0. It is 0.0 above")


def test_verdict_without_values_or_without_others():
    assert pages.verdict([row("plain", [None])], ACCURACY) == "accuracy (%) has not been measured yet."
    alone = pages.verdict([row("plain", [0.8, 0.9]), row("missing", [None, None])], ACCURACY)
    assert alone.endswith("There is no other row to compare it with.")


def test_text_has_mean_interval_seeds_and_the_papers_figure():
    lines = pages.as_text(a_report(THREE, [step("plain", 0), step("masked", 1, "missing")]), TABLE).splitlines()
    assert lines[0] == "gradcam_masking: 1 of 2 steps finished, 75 s of work"
    first = next(k for k, line in enumerate(lines) if line.startswith("A: plain"))
    low, high = (100 * end for end in THREE[0]["interval95"]["test/accuracy"])
    assert lines[first].split() == [
        "A:",
        "plain",
        "84.6",
        f"({low:.1f}",
        "to",
        f"{high:.1f})",
        "2.91",
        "(2.89",
        "to",
        "2.93)",
    ]
    assert lines[first + 1].split() == ["seeds", "84.0", "85.1", "84.8", "seeds", "2.90", "2.91", "2.92"]
    assert lines[first + 2].split() == ["paper", "85.2"]
    assert "seeds 2.50 2.40 -" in "\n".join(lines)
    assert "missing: masked, seed 1" in lines
    assert TABLE.note in lines


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_text_is_folded_to_the_width(width):
    many = Table(rows=(), columns=tuple(Column("entropy", f"a metric with a long title {k}") for k in range(7)))
    rows = [row("a row whose name is longer than what is kept for names", [0.5, 0.6], [1.0, 2.0])]
    text = pages.as_text(a_report(rows), many, width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    assert words.count("1.5 (-4.9 to 7.9)") == 7


def test_a_job_without_a_table():
    said = pages.as_text(a_report([], [step("plain", 0)]), None)
    assert said == "gradcam_masking: 1 of 1 steps finished, 75 s of work"
    assert "<h2>Steps</h2>" in pages.as_html(a_report([], [step("plain", 0)]), None, {})


class Page(HTMLParser):
    """Checks that tags close, and collects what the page names."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.sources, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_stands_alone_and_has_it_all():
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    steps = [step("plain", 0), step("masked", 0, "partial"), step("masked", 1, "missing")]
    html = pages.as_html(a_report(THREE, steps), TABLE, {"sheets/where-it-looks-seed0.png": file.getvalue()})
    page = Page(html)
    text = " ".join(page.words)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "://" not in html
    (source,) = page.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == file.getvalue()
    for expected in ("where it looks seed0", "84.6", "84.0 85.1 84.8", "paper 85.2", "0123456789ab", "75 s"):
        assert expected in text, expected
    for expected in ("partial", "missing", "finished", TABLE.note, pages.verdict(THREE, ACCURACY)):
        assert expected in text, expected
    assert html == pages.as_html(a_report(THREE, steps), TABLE, {"sheets/where-it-looks-seed0.png": file.getvalue()})


def test_names_cannot_break_the_page():
    nasty = '</td><script>alert("x")</script>&'
    rows = [row(nasty, [0.5, 0.6])]
    table = Table(rows=(), columns=(Column("test/accuracy", nasty),), note=nasty)
    found = {**a_report(rows, [step(nasty, 0)]), "job": nasty}
    page = Page(pages.as_html(found, table, {nasty: b"\x89PNG"}))
    assert "script" not in page.tags
    assert " ".join(page.words).count('<script>alert("x")') >= 6


def test_json_is_strict():
    found = a_report([row("A", [math.nan, None])], [{**step("plain", 0), "metrics": {"loss": math.inf, "n": 3}}])
    text = pages.as_json(found)

    def refuse(word):
        raise AssertionError(word)

    again = json.loads(text, parse_constant=refuse)
    assert again["steps"][0]["metrics"] == {"loss": None, "n": 3}
    assert again["table"]["rows"][0]["values"]["test/accuracy"] == [None, None]
