"""Reports and comparisons: one page that loads nothing, says all, and opens in a real browser."""

import dataclasses
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser

import av
import numpy as np
import pytest

from worldmodel import cli
from worldmodel.errors import UserError
from worldmodel.evaluate import compare_page
from worldmodel.evaluate.compare import compare, doubts, load_cards, table
from worldmodel.evaluate.metrics import estimate
from worldmodel.evaluate.page import number
from worldmodel.evaluate.report import render
from worldmodel.evaluate.scorecard import Scorecard, Verdict, data_hash, metric
from worldmodel.evaluate.sheets import Row, Sheet, animate, draw, save_sheets
from worldmodel.viewer import theme

HOSTILE = "</script><img src=x onerror=alert(1)> \"'&"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects what a page would load, its words and its tags; fails where tags do not close."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "poster", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def make_sheet(name="futures", title="Futures", count=9):
    frames = np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    rows = [Row(kind, frames, ("", *"w" * (count - 1))) for kind in ("real", "imagined")]
    return Sheet(name, title, HOSTILE, draw(rows, ["x"] * count, 32), animate(rows, tile=32))


def make_card(shift=0.0, seed=1, **changes):
    """A scorecard of the same 24 clips, with metrics that the report knows and others."""
    clips, own = np.random.default_rng(0), np.random.default_rng(seed)
    found = []
    for name, better in (("ssim", "higher"), ("drift_of_something", "lower")):
        for h in range(1, 6):
            values = clips.normal(1 / h, 0.3, 24) + own.normal(shift, 0.01, 24)
            beside = {"copy": 0.31234 / h, "real": float("nan")}
            found.append(
                metric(name, estimate(values), better=better, horizon=h, baselines=beside, unit="m")
            )
    found.append(metric(HOSTILE, estimate(clips.normal(size=24)), baselines={HOSTILE: 0.5}))
    found.append(metric("idm_exact_imagined", estimate(clips.uniform(size=24)), better="higher"))
    beside = {"pass mark": 0.5, "real": 1.0, "copy": 0.0, "noise": float("nan")}
    found.append(metric("walk: follows", estimate(clips.uniform(size=8)), baselines=beside))
    card = Scorecard(
        suite="quick", checkpoint="one", checkpoint_hash="ab" * 32, store="s.zarr", split="val",
        seed=0, commit=None, version="0", device="cpu", dtype="float32",
        settings={"guidance": 2.0, "notes": HOSTILE}, metrics=tuple(found),
        verdicts=(Verdict(HOSTILE, "asked", HOSTILE, True), Verdict("other", "a", "b", False)),
        tables={"experts": {"share": [[0.1234, 0.25], [0.75, 0.5]]}}, data="d" * 64,
    )  # fmt: skip
    return dataclasses.replace(card, **changes)


@pytest.fixture(scope="module")
def report():
    return render(make_card(), [make_sheet(), make_sheet("say_" + HOSTILE, HOSTILE)])


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    places = []
    for name, shift in (("one", 0.0), ("two", 0.05)):
        (folder / name).mkdir()
        make_card(shift, checkpoint=name).save(folder / name / "scorecard.json")
        save_sheets([make_sheet()], folder / name)
        places.append(str(folder / name))
    cards = load_cards(places)
    return compare_page.render(cards, compare(cards), compare_page.load_sheets(places))


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_a_page_is_well_formed_and_loads_nothing_from_anywhere(kind, request):
    text = request.getfixturevalue(kind)
    page = Page(text)
    kinds = ("#s", "data:image/webp;base64,", "data:video/mp4;base64,")
    found = {next(k for k in kinds if load.startswith(k)) for load in page.loads}
    assert found >= {"#s", "data:video/mp4;base64,"}
    assert not re.search(r"https?://|@import|url\(", text)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "object", "base", "source"}
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {load[1:] for load in page.loads if load.startswith("#")} <= ids


@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_what_users_wrote_is_text_and_no_markup(kind, request):
    text = request.getfixturevalue(kind)
    page = Page(text)
    assert "onerror=alert(1)" in page.text  # it is said
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")
    assert sum(tag == "script" for tag, _ in page.tags) == 1  # our own


def test_pictures_and_tables_are_told_to_those_who_cannot_see_them(report):
    tags = Page(report).tags
    assert all(attrs["alt"] for tag, attrs in tags if tag == "img")
    assert all(attrs["aria-label"] for tag, attrs in tags if tag in ("video", "svg"))
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in tags if tag == "th")
    assert dict(tags)["html"]["lang"] == "en"


def test_every_number_of_the_scorecard_is_on_the_page(report):
    text, card = Page(report).text, make_card()
    for m in card.metrics:
        for value in (m.value, m.low, m.high, *m.baselines.values()):
            assert number(value) in text
        assert m.name.replace("_", " ") in text
    for value in (v for row in card.tables["experts"]["share"] for v in row):
        assert number(value) in text
    assert "1 of 2" in text
    assert "✓ yes" in text
    assert "✗ no" in text


def test_metrics_that_nobody_has_heard_of_are_plotted_beside_their_baselines(report):
    plot = next(p for p in report.split("<figure>") if p.startswith("<figcaption>drift of some"))
    assert "lower is better" in plot
    assert 'class="band"' in plot
    assert "copy" in plot
    assert "nan" not in plot.lower()


def test_a_scorecard_without_anything_to_show_still_gives_a_page():
    bare = make_card(metrics=(), verdicts=(), tables={})
    assert Page(render(bare, [])).text


def test_the_dark_page_has_the_colours_of_the_viewer(report):
    dark = report[report.index("prefers-color-scheme: dark") :]
    for colour in (theme.BACK, theme.SURFACE, theme.TEXT, theme.MUTED, theme.AMBER, theme.TEAL):
        assert "#{:02x}{:02x}{:02x}".format(*colour) in dark


def test_a_film_shows_every_frame_and_browsers_know_its_kind():
    with av.open(io.BytesIO(make_sheet(count=7).mp4), "r") as film:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert sum(1 for _ in film.decode(stream)) == 7


def test_files_of_sheets_stay_in_their_folder_whatever_a_sentence_says(tmp_path):
    (tmp_path / "out").mkdir()
    save_sheets([make_sheet(f"say_../../{'long' * 90}"), make_sheet("say_ü/.")], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_on_the_same_clips_a_small_change_is_sure_although_the_intervals_overlap():
    first, second = make_card(), make_card(0.05, seed=2, checkpoint="two")
    rows = {row.label: row for row in compare([first, second])}
    a, b = rows["ssim at 3"].found
    assert a
    assert b
    assert a.low < b.low < a.high
    (change,) = rows["ssim at 3"].changes
    assert change.sure
    assert change.low < change.value < change.high
    assert change.value == pytest.approx(b.value - a.value)
    assert rows["ssim at 3"].good(change) is True
    assert rows["drift_of_something at 3"].good(*rows["drift_of_something at 3"].changes) is False
    (same,) = {row.label: row for row in compare([first, first])}["ssim at 3"].changes
    assert not same.sure
    elsewhere = dataclasses.replace(second, data="e" * 64)
    (change,) = {row.label: row for row in compare([first, elsewhere])}["ssim at 3"].changes
    assert not change.sure
    assert np.isnan(change.low)


def test_a_handful_of_clips_makes_nothing_sure():
    def few(shift, count):
        found = metric("it", estimate(np.arange(count) + shift), better="higher")
        return make_card(metrics=(found,))

    assert not compare([few(0, 5), few(9, 5)])[0].changes[0].sure
    assert compare([few(0, 6), few(9, 6)])[0].changes[0].sure
    apart = dataclasses.replace(few(9, 5), data="e" * 64)
    assert not compare([few(0, 5), apart])[0].changes[0].sure


def test_what_was_not_measured_alike_is_said():
    first = make_card()
    assert doubts([first, first]) == []
    other = dataclasses.replace(
        first, data="e" * 64, store="t.zarr", device="cuda", settings={"guidance": 1.0}
    )
    said = "\n".join(doubts([first, other]))
    for words in ("same clips", "A: s.zarr, B: t.zarr", "speeds", "guidance: A: 2.0, B: 1.0"):
        assert words in said
    assert "note: " in table([first, other], compare([first, other]))
    page = compare_page.render([first, other], compare([first, other]))
    assert "Not measured alike" in page
    assert 'class="text odd"' in page
    assert "does not say" in " ".join(doubts([first, dataclasses.replace(first, data="")]))


def test_samples_come_back_with_their_own_scorecard_only(tmp_path):
    card = make_card()
    card.save(tmp_path / "scorecard.json")
    again = Scorecard.load(tmp_path / "scorecard.json")
    for m, n in zip(card.metrics, again.metrics, strict=True):
        np.testing.assert_allclose(m.samples, n.samples, rtol=1e-5)
    assert '"samples"' not in (tmp_path / "scorecard.json").read_text()
    (tmp_path / "kept.json").write_text((tmp_path / "samples.json").read_text())
    make_card(checkpoint_hash="ff" * 32).save(tmp_path / "scorecard.json")
    (tmp_path / "kept.json").replace(tmp_path / "samples.json")
    assert not any(m.samples for m in Scorecard.load(tmp_path / "scorecard.json").metrics)


def test_the_hash_of_data_tells_arrays_and_texts_apart():
    a = np.arange(12).reshape(3, 4)
    assert data_hash(a, "x") == data_hash(a.copy(), "x")
    assert len({data_hash(a), data_hash(a, "x"), data_hash(a.T), data_hash(a + 1)}) == 4


def test_scorecards_to_compare_may_be_said_as_words(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("it's one", "two, or more"):
        make_card(checkpoint=name).save(tmp_path / name / "scorecard.json")
    words = ["eval", "compare", "it's one", "two, or more"]
    assert cli.main([*words, f"out={tmp_path / 'c'}"]) == 0
    assert "ssim at 1" in capsys.readouterr().out
    assert "two, or more" in (tmp_path / "c" / "compare.html").read_text()
    assert cli.main(["eval", "compare"]) == 2
    assert "worldmodel eval compare A B" in capsys.readouterr().err
    with pytest.raises(UserError, match="at most 10"):
        load_cards(["a"] * 11)


PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const film = document.querySelector("video");
  const plays = film.videoWidth > 0 || film.canPlayType('video/mp4; codecs="avc1.42E01E"') == "";
  document.title = [document.documentElement.scrollWidth, innerWidth, plays].join(" ");
}, 500))</script>"""


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize("width", [500, 1200])
def test_the_page_opens_in_a_browser_at_any_width(kind, width, request, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs chromium")
    path = tmp_path / "page.html"
    path.write_text(request.getfixturevalue(kind).replace("</body>", f"{PROBE}</body>"))
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
            f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    title = re.search(r"<title>(\d+) (\d+) (true|false)</title>", done.stdout)
    assert title, done.stdout[:300]
    assert int(title[1]) <= int(title[2])  # nothing makes the page itself scroll sideways
    assert title[3] == "true"
