"""The report: one file that loads nothing, breaks on nothing, and says what happened."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from align3d.charts import MINUS
from align3d.evaluate import Evaluation, compare
from align3d.page import Html, h, image, join
from align3d.report import Exhibit, exhibits_of, write_report
from align3d.runs import Run

VOID = {"meta", "img", "source", "path", "circle"}
HOSTILE = "</style><script>alert('x')</script><img src=http://evil.example/x onerror=\"alert(1)\"> & \u202e"


class Page(HTMLParser):
    """Reads a page and checks that every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def text(self):
        return " ".join("".join(self.words).split())

    def all(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


def evaluations(P=6, S=2):
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(P, S, 2, generator=g, dtype=torch.float64)
    pictures = torch.randint(0, 256, (P, S, 2, 3, 4, 5), generator=g, dtype=torch.uint8)
    base = Evaluation(tuple(f"prompt {i}" for i in range(P)), (7, 9)[:S], ("colour", "dnc"), scores, pictures)
    up = torch.tensor([0.2, 0.0]) + torch.tensor([0.01, 0.05]) * torch.randn(P, S, 2, generator=g, dtype=torch.float64)
    return base, Evaluation(base.prompts, base.seeds, base.rewards, scores + up, pictures // 2)


@pytest.fixture
def run(tmp_path):
    """A plain training run, as the loop leaves it."""
    folder = tmp_path / "run"
    for step in (0, 10, 20):
        (folder / f"samples/step-{step:06}").mkdir(parents=True)
        Image.new("RGB", (40, 20), (step, 0, 0)).save(folder / f"samples/step-{step:06}/sheet.png")
    config = {
        "config": {
            "model": {"name": "embedded", "rank": 8, "weights": None},
            "reward": {"name": "colour"},
            "method": {"name": "nabla", "jacobian": False},
            "loop": {"betas": [0.9, 0.999]},
        },
        "inputs": {"prompts": 4},
        "versions": {"align3d": "1.2.3", "torch": "2.13.0"},
        "git": "0123456789abcdef0123",
        "command": ["/usr/bin/align3d", "train", "--out", "my run"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": i, "seconds": 2.5, "reward": 0.1 * i, "reward_std": 0.1, "loss": 1 / i, "drift": i / 50, "dead": i % 2}
        | {"seconds_sample": 1.0, "seconds_reference": 0.0, "seconds_reward": 1.25, "memory_mib": 500.0 + i}
        for i in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_plain_run_tells_its_story(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = read(path)
    text = page.text()
    assert "Model embedded, aligned with colour by nabla" in text
    assert "Over 20 updates, the mean reward of the training samples went from 0.150 to 1.950" in text
    for heading in ("Samples along the way", "Training", "Reward", "Drift", "Time of an update", "What was run"):
        assert heading in text
    for hidden in ("Against the base", "Before and after", "All around"):
        assert hidden not in text
    assert "align3d train --out 'my run'" in text
    assert "50 s" in text and "520 MiB" in text
    assert "sampling1 s, 40 %" in text and "everything else0.25 s, 10 %" in text and "reference" not in text
    assert page.all("img", "alt") == ["samples, before", "samples, after 20 updates", "samples, after 10 updates"]
    assert "commit 0123456789ab" in text and "0.9, 0.999" in text


@pytest.fixture
def drawn(run):
    """The same run, with pictures of two single prompts, one turntable, and numbers."""
    for step in (0, 10, 20):
        folder = run / f"samples/step-{step:06}"
        frames = [Image.new("RGB", (8, 8), (step, i, 0)) for i in (0, 9)]
        for i in range(2):
            frames[i].save(folder / f"{i:02}.png")
        frames[0].save(folder / "00.webp", save_all=True, append_images=frames[1:])
        about = {"prompts": ["a red cube", "a blue ball"], "seeds": [7, 8], "mean": {"colour": 0.5 + step / 100}}
        (folder / "samples.json").write_text(json.dumps(about | {"diversity": 0.2 - step / 1000}))
    return run


def test_samples_of_a_run_are_shown_before_and_after(drawn):
    page = read(write_report(drawn))
    text = page.text()
    alts = page.all("img", "alt")
    pairs = [f"{prompt}, {when}" for prompt in ("a red cube", "a blue ball") for when in ("before", "after 20 updates")]
    assert alts[:4] == pairs and alts[4:6] == pairs[:2], "pictures, then the turntable"
    assert alts[6:] == ["samples, before", "samples, after 20 updates", "samples, after 10 updates"]
    assert "Before and after" in text and "All around" in text and "Samples along the way" not in text
    assert text.count("seed 7") == 3
    changes = "colour 0.500 → 0.700, diversity between seeds 0.200 → 0.180"
    assert f"2 prompts of the training with 2 seeds each, the same before and after: {changes}." in text
    labels = page.all("svg", "aria-label")
    assert "Diversity: from 0.200 to 0.180 over 3 values" in labels
    assert "colour, same samples: from 0.500 to 0.700 over 3 values" in labels
    assert page.all("path", "class").count("base") == 2


def test_a_run_that_has_just_begun_shows_the_base(drawn):
    import shutil

    for step in (10, 20):
        shutil.rmtree(drawn / f"samples/step-{step:06}")
    (drawn / "metrics.jsonl").unlink()
    page = read(write_report(drawn))
    assert page.all("img", "alt")[:2] == ["a red cube, before", "a blue ball, before"]
    assert "0 updates." in page.text() and "→" not in page.text()
    assert "Before" in page.words and "Before and after" not in page.words


def test_numbers_against_the_base_make_the_headline(run, tmp_path):
    base, tuned = evaluations()
    c = compare(base, tuned)
    out = tmp_path / "page.html"
    write_report(out, run, comparisons={"nabla": c}, exhibits=exhibits_of({"before": base, "after": tuned}),
                 pool="held-out prompts", title="A title", notes=["A note."], command="align3d demo")  # fmt: skip
    page = read(out)
    text = page.text()
    row = c["colour"]
    assert f"colour rose from {row.base:.3f} to {row.tuned:.3f} on 6 held-out prompts, 2 seeds each (+0." in text
    assert "95 % interval" in text and "standard errors)" not in text, "of six prompts"
    assert "Not trained on: dnc" in text and "Diversity between seeds: 0." in text
    assert "A title" in text and "A note." in text and "align3d demo" in text
    assert "Samples along the way" not in text, "the run's own pictures come only where there are no better ones"
    alts = page.all("img", "alt")
    assert alts[:2] == ["prompt 0, before", "prompt 0, after"] and len(alts) == 12
    assert text.count("seed 7") == 6
    labels = page.all("td", "data-label")
    assert labels[:6] == ["base", "tuned", "change", "z", "95 % interval", "went up"] and len(labels) == 18
    assert page.tags.count("h1") == 1


def test_uncertain_changes_are_called_so(tmp_path):
    base, tuned = evaluations()
    noise = 0.01 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[:, None, None]
    shaken = replace(base, scores=base.scores + noise)
    assert not compare(base, shaken)["dnc"].certain
    write_report(tmp_path / "a.html", comparisons={"x": compare(base, shaken)})
    text = read(tmp_path / "a.html").text()
    assert "which may be chance" in text and "(no clear change)" in text
    write_report(tmp_path / "b.html", comparisons={"x": compare(base, tuned), "y": compare(base, base)})
    page = read(tmp_path / "b.html")
    assert "may be chance" not in page.text() and {"x", "y"} < set(page.words)
    assert page.all("td", "class").count("unsure") >= 2  # nothing in y changed
    write_report(tmp_path / "c.html", comparisons={"y": compare(base, base)})
    assert "colour went from" in read(tmp_path / "c.html").text()


def test_one_prompt_and_one_seed_still_make_a_page(tmp_path):
    base, tuned = evaluations(1, 1)
    write_report(tmp_path, comparisons={"x": compare(base, tuned)})
    text = read(tmp_path / "report.html").text()
    assert "on 1 prompts, 1 seed each" in text and "n/a" in text and "diversity" not in text


def test_nothing_at_all_is_a_page_too(tmp_path):
    page = read(write_report(tmp_path))
    assert "0 updates." in page.text() and "img" not in page.tags


def test_nothing_is_ever_loaded(run, tmp_path):
    base, tuned = evaluations()
    turn = Exhibit("p", {"before": [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]})
    path = write_report(run, comparisons={"x": compare(base, tuned)}, turntables=[turn])
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "srcset", "href", "poster", "data", "action"):
            assert value.startswith("data:image/"), (tag, name)
        assert not name.startswith("on")
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert "default-src 'none'" in page.all("meta", "content")[0]
    assert not re.search(r"url\(|@import|https?://", text)


def test_hostile_words_stay_words(run):
    config = {"config": {"model": {"name": HOSTILE, HOSTILE: HOSTILE}, "reward": {"name": HOSTILE}}, "git": HOSTILE}
    config |= {"command": [HOSTILE, HOSTILE], "versions": {HOSTILE: HOSTILE, "align3d": HOSTILE}}
    (run / "config.json").write_text(json.dumps(config))
    row = {"reward": 1.0, HOSTILE: 2.0, f"seconds_{HOSTILE}": 1.0}
    rows = [{"step": i} | {k: v * i for k, v in row.items()} for i in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    name = "samples/step-000020/<b onload=x>&.png"
    Image.new("RGB", (4, 4)).save(run / name)
    base, tuned = (Evaluation((HOSTILE,) * 2, e.seeds, (HOSTILE, "x"), e.scores, e.pictures) for e in evaluations(2))
    comparison = compare(base, tuned)
    for extra in ({}, {"exhibits": exhibits_of({HOSTILE: base, "after": tuned})}):
        words = {"title": HOSTILE, "notes": [HOSTILE], "pool": HOSTILE, "trained_on": HOSTILE}
        path = write_report(run, comparisons={HOSTILE: comparison, "y": comparison}, **words, **extra)
        page = read(path)
        assert not {"script", "b onload", "onload"} & set(page.tags)
        assert all(v.startswith("data:") for v in page.all("img", "src"))
        assert not [n for _, n, _ in page.attributes if n.startswith("on")]
        assert "alert('x')" in page.text()


def test_a_sum_of_rewards_is_told_by_its_terms(run):
    config = json.loads((run / "config.json").read_text())
    terms = {"colour": {"weight": 1.0}, HOSTILE: {"weight": -0.25}}
    config["config"]["reward"] = {"name": "mix", "terms": terms}
    (run / "config.json").write_text(json.dumps(config))
    rows = [{"step": i, "reward": 0.0, "term_colour": i, f"term_{HOSTILE}": 1 / i} for i in range(1, 21)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = read(write_report(run))
    assert f"aligned with colour {MINUS} 0.25 {' '.join(HOSTILE.split())} by nabla" in page.text()
    assert "training samples went colour from 1.500 to 19.50, " in page.text()
    assert "a term of the reward, as it is" in page.text()
    assert "script" not in page.tags and all(v.startswith("data:") for v in page.all("img", "src"))
    config["config"]["reward"]["terms"] = {"colour": {"weight": None}}
    (run / "config.json").write_text(json.dumps(config))
    assert "aligned with mix by nabla" in read(write_report(run)).text()


def test_damaged_runs_lose_only_what_is_damaged(run, tmp_path):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    bad = ["", "[1]", "null", '{"step": "x"}', '{"step": NaN}', '{"step": 1e999}', "\0\1", '{"step": 3, "rew']
    (run / "metrics.jsonl").write_bytes("\n".join([*lines, *bad]).encode() + b"\xff\xfe")
    told = Run.read(run)
    assert len(told.metrics) == 20 and set(told.samples) == {0, 10, 20}
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": null, "loss": "x", "drift": ' + "9" * 400 + "}\n")
    (run / "config.json").write_text("[" * 100_000)
    (run / "samples/step-abc").mkdir()
    (run / "samples/step-000030").write_text("a file")
    (run / "samples/step-000020/far.png").symlink_to("/etc/hostname")
    told = Run.read(run)
    assert told.config == {} and told.part("model") is None and set(told.samples) == {0, 10, 20}
    assert [p.name for p in told.samples[20].pictures] == ["sheet.png"]
    for about in ("[]", '{"prompts": 3, "seeds": {}, "mean": [1], "diversity": "x"}', '{"mean": {"a": null}}', "\0"):
        (run / "samples/step-000020/samples.json").write_text(about)
        drawn = Run.read(run).samples[20]
        assert (drawn.prompts, drawn.seeds, drawn.rewards, drawn.diversity) == ([], [], {}, None)
    assert "1 update." in read(write_report(run)).text()
    (run / "config.json").write_text(json.dumps({"config": [1], "command": "x", "versions": 3}))
    assert "What was run" in read(write_report(run)).text()


def test_where_it_goes(run, tmp_path):
    assert write_report(tmp_path / "new/deep/page.html", run).is_file()
    assert write_report(tmp_path / "folder", run) == tmp_path / "folder/report.html"
    assert not list(tmp_path.rglob("*.tmp*"))
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "x.html", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot write"):
        write_report(run / "config.json" / "x.html", run)


def test_elements_escape_what_they_are_given():
    assert h("p", "<a>", Html("<b></b>"), None, title='"') == '<p title="&quot;">&lt;a&gt;<b></b></p>'
    assert h("img", src="x", data_label=None, class_="c") == '<img src="x" class="c">'
    assert isinstance(join("&", h("i", "x")), Html) and join("&", h("i", "x")) == "&amp;<i>x</i>"


def opened(html, attribute="src"):
    data = re.search(rf'{attribute}="data:image/[a-z]+;base64,([^"]+)"', html)[1]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_of_every_kind_are_inlined(tmp_path):
    pixels = torch.zeros(3, 6, 8)
    pixels[0] = 1
    for picture in (pixels, (255 * pixels).to(torch.uint8), Image.new("RGB", (8, 6), "red")):
        html = image(picture, "red")
        assert 'width="8" height="6"' in html and 'alt="red"' in html
        assert opened(html).convert("RGB").getpixel((3, 3))[0] > 245
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    html = image(frames, "turns")
    assert opened(html).n_frames == 3 and opened(html).info["loop"] == 0
    assert "prefers-reduced-motion" in html and getattr(opened(html, "srcset"), "n_frames", 1) == 1
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert "image/gif" in image(tmp_path / "a.gif", "x") and "prefers-reduced-motion" in image(tmp_path / "a.gif", "x")
    frames[0].save(tmp_path / "a.png")
    assert "prefers-reduced-motion" not in image(tmp_path / "a.png", "x")


def test_bad_pictures_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("align3d.page.MAX_PIXELS", 1000)
    (tmp_path / "a.png").write_text("<svg onload=alert(1)>")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with (tmp_path / "c.png").open("wb") as file:
        file.truncate(9 << 20)
    Image.new("1", (90, 90)).save(tmp_path / "d.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "e.ppm")
    cases = {"a.png": "no picture", "b.png": "no picture", "c.png": "9 MiB", "d.png": "90 x 90", "e.ppm": "no pict"}
    for name, message in cases.items():
        with pytest.raises(ValueError, match=rf"{name}.*{message}.*; "):
            image(tmp_path / name, "x")
    with pytest.raises(FileNotFoundError, match=r"no picture .*f\.png"):
        image(tmp_path / "f.png", "x")
    with pytest.raises(ValueError, match="at least one frame"):
        image([], "x")


def test_exhibits_are_spread_over_the_prompts():
    base, tuned = evaluations(6)
    shown = exhibits_of({"a": base, "b": tuned}, most=3, view=1)
    assert [e.prompt for e in shown] == ["prompt 0", "prompt 2", "prompt 4"]
    assert torch.equal(shown[1].pictures["b"], tuned.pictures[2, 0, 1]) and shown[0].seed == 7
    assert len(exhibits_of({"a": base}, most=4)) <= 4
    with pytest.raises(ValueError, match="'b' is of other prompts"):
        exhibits_of({"a": base, "b": evaluations(5)[0]})
    with pytest.raises(ValueError, match="'a' has no pictures"):
        exhibits_of({"a": Evaluation(base.prompts, base.seeds, base.rewards, base.scores)})
