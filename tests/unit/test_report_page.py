"""The page of a report: well-formed, self-contained, escaped; and what its sentences say."""

import html.parser
import math
import re

import numpy as np
import pytest

from tf_gossip_pga.observe import rendering, words
from tf_gossip_pga.observe.record import Change, Epoch, Record, thinned

EVIL = '<script>alert("1")</script>&'
EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}


def record(size=3, epochs=2, **fields) -> Record:
    found = Record(
        model="mlp",
        parameters=1234,
        hosts=[f"host{rank}:2222" for rank in range(size)],
        settings={"H": "6"},
        versions={"Keras": "3.15.1"},
        command="python train.py",
        started=1e9,
        planned=epochs,
        steps=10 * epochs,
        seconds=5.0,
        is_finished=True,
    )
    for number in range(1, epochs + 1):
        logs = {"loss": 1 / number, "val_loss": 2 / number, "accuracy": 0.5}
        found.epochs.append(Epoch(number, logs, [0.25] * size, 1.0))
    found.training_seconds = [2.0] * size
    for name, value in fields.items():
        setattr(found, name, value)
    return found


class Parsed(html.parser.HTMLParser):
    """The tags, attributes and text of a page whose tags are closed in order."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


RECORDS = {
    "a run": record(),
    "one worker": record(size=1),
    "no epoch yet": record(epochs=0),
    "one epoch": record(epochs=1),
    "diverged": record(distances=[(6, math.nan)]),
    "distances": record(distances=[(6, 0.1), (12, 0.01)], changes=[Change(1e9, 7, [2], [], 2)]),
    "many ranks": record(size=45),
}
RECORDS["diverged"].epochs = [Epoch(1, {"loss": math.nan, "val_loss": math.inf}, [0.5] * 3, 1.0)]


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_well_formed_and_needs_nothing_else(name):
    page = rendering.render(RECORDS[name])
    parsed = Parsed(page)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base"}
    for tag, attributes in parsed.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key.split(":")[-1] in {"src", "href"}:
                assert value.startswith(("#", "data:image/png;base64,")), (tag, value)
    assert not re.search(r"https?:|@import", page)
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]+)', page)
    assert set(used) <= set(ids)
    pictures = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert all(each["role"] == "img" and len(each["aria-label"]) > 20 for each in pictures)


def test_texts_of_the_user_are_escaped():
    run = record(model=EVIL, hosts=[EVIL] * 3, settings={EVIL: EVIL}, command=EVIL)
    run.versions = {EVIL: EVIL}
    run.epochs = [Epoch(1, {EVIL: 1.0, f"val_{EVIL}": 2.0, "a$b$_{": 3.0}, [0.1] * 3, 1.0)]
    parsed = Parsed(rendering.render(run))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.text.count(EVIL) >= 8


def test_pictures_take_the_colors_of_the_page():
    waiting = [[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]
    page = rendering.render(record(distances=[(6, 0.1)], waiting=waiting))
    for color in ("currentColor", "var(--training)", "var(--validation)", "var(--cell)"):
        assert color in page
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", svgs)


def test_the_page_shows_the_run():
    run = record(changes=[Change(1e9 + 3, 7, [2], [], 2), Change(1e9 + 4, 12, [], [2], 3)])
    run.settings |= {"topology": "ring"}
    run.sent = [10**6] * 3
    text = Parsed(rendering.render(run)).text
    for expected in (
        "Training finished after 2 epochs.",
        "Rank 2 was lost at step 7; 2 workers trained on. 2001-09-09 01:46:43 UTC",
        "Rank 2 joined at step 12; 3 workers trained on. 2001-09-09 01:46:44 UTC",
        "val_loss 1 last epoch",
        "time in exchanges 25 %",
        "sent per worker 1.0 MB in all epochs, mean",
        "topology ring",
        "Keras 3.15.1",
        "trainable parameters 1,234",
        "host1:2222",
        "python train.py",
        "1 lost",
    ):
        assert expected in text
    assert "(lost)" not in text  # it has come back
    assert "No worker was lost." not in text
    assert "No worker was lost." in Parsed(rendering.render(record())).text


def test_the_cells_of_the_heat_map_have_numbers_up_to_16_ranks():
    waiting = np.zeros((16, 16))
    waiting[3, 5] = 123.4
    assert ">123<" in rendering.render(record(size=16, waiting=waiting.tolist()))
    waiting = np.zeros((17, 17))
    waiting[3, 5] = 123.4
    assert ">123<" not in rendering.render(record(size=17, waiting=waiting.tolist()))


# ---- Sentences ----------------------------------------------------------------------------------


def waits(matrix, seconds=100.0):
    size = len(matrix)
    run = record(size, waiting=[list(map(float, row)) for row in matrix])
    run.training_seconds = [seconds] * size
    return " ".join(words.waits(run))


def test_the_slowest_rank_is_named():
    assert waits([[0, 1, 5], [0, 0, 7.3], [0, 1, 0]]) == (
        # 5 + 7.3 = 12.3 of 14.3 s; 14.3 of 300 s
        "Rank 2 kept the others waiting longest: 12.3 s in all, which is 86 % of all waiting. "
        "Waiting took 4.8 % of the workers' time."
    )
    assert waits([[0, 0], [3, 0]]) == (
        "Rank 0 kept the others waiting longest: 3.0 s in all. "
        "Waiting took 1.5 % of the workers' time."
    )


def test_even_waits_name_nobody():
    assert waits([[0, 1, 1.2], [1, 0, 1], [1, 1, 0]]) == (
        # columns: 2, 2, 2.2; 6.2 of 300 s
        "No rank stands out: the others waited between 2.0 s and 2.2 s for each. "
        "Waiting took 2.1 % of the workers' time."
    )
    assert waits([[0, 3], [2, 0]]).startswith("No rank stands out: the others waited between 2.0 s")


def test_short_waits_hardly_matter():
    text = waits([[0, 0.4], [0, 0]])
    assert text.startswith("Rank 1 kept the others waiting longest: 0.40 s in all. ")
    assert text.endswith("Waiting took 0.2 % of the workers' time, which hardly matters.")
    assert waits([[0, 0], [0, 0]]) == "No rank waited for another."
    assert waits([[0]]) == "There is only one worker, so there is nobody to wait for."


def test_changes_in_words():
    change = Change(0.0, 1200, [1, 3], [], 1)
    assert words.change(change) == (
        "Rank 1 and rank 3 were lost at step 1,200; 1 worker trained on."
    )


def test_the_state_in_words():
    assert words.state(record(planned=5)) == "Training stopped early, after 2 of 5 epochs."
    resumed = record(epochs=4, planned=5)
    resumed.epochs = resumed.epochs[2:]
    assert words.state(resumed) == (
        "Training stopped early, after 4 of 5 epochs. "
        "This page begins with epoch 3, with which this fit began."
    )
    unfinished = words.state(record(planned=5, is_finished=False))
    assert unfinished.startswith("Epoch 2 of 5 had ended when this page was written, on 2001-09-09")


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (words.seconds, 0.034, "0.03 s"),
        (words.seconds, 12.34, "12.3 s"),
        (words.seconds, 99.96, "1 min 40 s"),
        (words.seconds, 3600 * 2 + 301, "2 h 5 min"),
        (words.size, 640, "640 B"),
        (words.size, 1_234_567, "1.2 MB"),
        (words.size, 5e15, "5000.0 TB"),
        (words.share, 0.0, "0 %"),
        (words.share, 0.004, "0.4 %"),
        (words.share, 0.123, "12 %"),
        (words.moment, 1e9, "2001-09-09 01:46:40 UTC"),
    ],
)
def test_numbers_have_units(function, value, text):
    assert function(value) == text


def test_a_curve_in_words():
    assert words.curve("training", [1, 2, 3], [2.0, math.nan, 0.123456]) == (
        "training: 2 in epoch 1, 0.1235 in epoch 3"
    )
    assert words.curve("a", [4], [2.0]) == "a: 2 in epoch 4"
    assert words.curve("a", [1], [math.nan]) == "a: no finite value"


def test_long_epochs_count_more():
    run = record()
    run.epochs = [Epoch(1, {}, [0.5, 0.7], 1.0), Epoch(2, {}, [0.1, 0.1], 3.0)]
    assert run.exchanging == pytest.approx((0.6 * 1 + 0.1 * 3) / 4)


# ---- The record ---------------------------------------------------------------------------------


def test_a_record_survives_json():
    run = record(changes=[Change(1.0, 2, [1], [], 2)], distances=[(6, 0.5)])
    run.add_waiting([0, 2], [[0.0, 1.5], [0.25, 0.0]])
    again = Record.from_json(run.as_json())
    assert again == run
    assert again.waiting == [[0.0, 0.0, 1.5], [0.0] * 3, [0.25, 0.0, 0.0]]


def test_distances_are_thinned_out_but_keep_their_extremes():
    run = record(distances=[])
    found = [(step, 1.0 + step % 7) for step in range(20_000)]
    found[12_345] = (12_345, 1e-6)
    found[6_789] = (6_789, 1e6)
    for start in range(0, 20_000, 100):
        run.add_distances(found[start : start + 100])
        assert len(run.distances) <= 4000
    assert {(12_345, 1e-6), (6_789, 1e6)} <= set(run.distances)
    assert run.distances == sorted(run.distances)
    assert len(thinned([(step, math.nan) for step in range(10_000)])) <= 4000
