"""`align3d score --results`: methods compared prompt by prompt, from folders of pictures, runs and samples."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import vlm_server
from closed_prior import red
from command_checks import contents, enter, refused
from PIL import Image
from test_optimize_command import OPTIMIZE
from test_score_command import REWARDS

from align3d import registry, rewards
from align3d.cli import main
from align3d.evaluate import evaluation_cameras
from align3d.files import locked
from align3d.judged import marks
from align3d.judged.marks import SCORES, Book, batches
from align3d.scenes.nerf.files import write_nerf
from align3d.scenes.nerf.nerf import Nerf
from align3d.scenes.nerf.options import March, NerfOptions
from align3d.scenes.ply import read_ply, write_ply
from align3d.scenes.splats import ball

H, W, V = 6, 9, 2
PROMPTS = [f"thing number {c}" for c in "abcdefghijkl"]
COUNTING = '''
from pathlib import Path

def counted(views, prompts):
    """Redness; counts its calls, and ends at one of them."""
    log = Path("calls.txt")
    calls = log.read_text().split() if log.exists() else []
    if Path("end").exists() and len(calls) >= int(Path("end").read_text()):
        raise KeyboardInterrupt
    log.write_text(" ".join([*calls, str(len(prompts))]))
    return views.rgb[:, :, 0].mean((-1, -2))
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two folders of pictures, the second a little redder, and a list with categories."""
    enter(tmp_path, monkeypatch)
    for name, text in (("more", REWARDS), ("counting", COUNTING)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
    rng = np.random.default_rng(0)
    for i, prompt in enumerate(PROMPTS):
        base = rng.integers(0, 200)
        for folder, more in (("one", 0), ("two", 8 + rng.integers(-3, 4))):
            Path(folder).mkdir(exist_ok=True)
            for view in range(V):
                colour = np.array([base + more + view, 9, i], np.uint8)
                Image.fromarray(np.broadcast_to(colour, (H, W, 3)).copy()).save(
                    Path(folder, f"{prompt.replace(' ', '_')}{view}.png")
                )
    rows = [f"{prompt},{'early' if i < 5 else 'late'}\n" for i, prompt in enumerate(PROMPTS)]
    (tmp_path / "list.csv").write_text("Prompts,Category\n" + "".join(rows))
    return tmp_path


SCORE = ["score", "--results", "first=one", "second=two", "--prompts", "list.csv", "--out", "out"]
COUNT = ["--rewards", "counting:counted"]


def table(out="out"):
    return json.loads(Path(out, "table.json").read_text())


def test_pictures_are_compared(here, capsys):
    assert main([*SCORE, *COUNT, "colourless=more:whole"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert "| second | counting:counted |" in shown.out and "warning" not in shown.err
    found = table()
    assert found["settings"]["prompts"] == 12 and found["settings"]["interval"] == {"seed": 0, "kind": "percentile"}
    rows = [row for row in found["prompts"] if row["method"] == "first"]
    assert [row["prompt"] for row in rows] == PROMPTS and rows[5]["category"] == "late"
    pixels = [np.asarray(Image.open(path)) for path in rows[3]["files"]]
    assert rows[3]["views"]["counting:counted"] == pytest.approx([x[..., 0].mean() / 255 for x in pixels], abs=1e-6)
    assert len(rows[3]["views"]["colourless"]) == 1, "of the whole"
    first, second = found["results"]
    own = [np.mean(row["views"]["counting:counted"]) for row in rows]
    assert first["means"]["counting:counted"]["value"] == pytest.approx(np.mean(own))
    assert first["changes"] == [] and first["categories"]["early"]["counting:counted"]["value"] == pytest.approx(
        np.mean(own[:5])
    )
    change = second["changes"][0]
    assert 0 < change["low"] < change["change"] < change["high"] and change["wins"] == 1
    assert second["category_changes"]["late"][0]["change"] > 0
    means = second["means"]["counting:counted"]
    assert change["high"] - change["low"] < 0.1 * (means["high"] - means["low"]), "prompts differ more than methods"
    text = Path("out/table.md").read_text()
    assert "## Differences to first, paired by prompt" in text and "## Categories: counting:counted" in text
    assert re.search(r"\| early \| 5 \|", text) and re.search(r"\| all \| 12 \|", text)
    page = Path("out/report.html").read_text()
    assert (
        "second against first" in page and page.count("<figure>") == 12 and "http" not in page.partition("</head>")[2]
    )


def test_the_same_seed_and_other_intervals(here, capsys):
    for out, more in (("a", ()), ("b", ()), ("c", ("--interval", "bca")), ("d", ("--seed", "3"))):
        assert main([*SCORE[:-1], out, *COUNT, *more]) == 0, capsys.readouterr().err
    spans = [table(out)["results"][1]["changes"][0] for out in "abcd"]
    assert spans[0] == spans[1] and len({span["low"] for span in spans}) == 3
    assert len({span["change"] for span in spans}) == 1


def test_a_start_that_was_cut_off_goes_on(here, capsys):
    assert main([*SCORE[:-1], "whole", *COUNT]) == 0
    calls = Path("calls.txt").read_text().split()
    assert calls == ["8", "4", "8", "4"]
    Path("end").write_text(str(len(calls) + 2))
    assert main([*SCORE, *COUNT]) == 130
    data = Path("out", SCORES).read_bytes()
    Path("out", SCORES).write_bytes(data[:-20])  # as a crash leaves it
    capsys.readouterr()
    Path("end").unlink()
    assert main([*SCORE, *COUNT]) == 0, capsys.readouterr().err
    assert Path("calls.txt").read_text().split()[4:] == ["8", "4", "4", "8", "4"], "no more than was missing"
    assert table()["prompts"] == table("whole")["prompts"] and table()["results"] == table("whole")["results"]
    assert main([*SCORE, *COUNT, "whole=more:whole"]) == 0, capsys.readouterr().err
    assert len(Path("calls.txt").read_text().split()) == 9, "another reward, and nothing again"


def test_what_has_changed_is_judged_again(here, capsys):
    assert main([*SCORE, *COUNT]) == 0
    before, calls = table(), Path("calls.txt").read_text().split()
    Image.new("RGB", (W, H), "red").save("two/thing_number_a0.png")
    assert main([*SCORE, *COUNT]) == 0
    after = table()
    assert len(Path("calls.txt").read_text().split()) == len(calls) + 1, "one batch of four"
    assert [a == b for a, b in zip(before["prompts"], after["prompts"], strict=True)].count(False) == 1
    Path("counting.py").write_text(COUNTING.replace("mean((-1, -2))", "mean((-1, -2)) + 1"))
    sys.modules.pop("counting")
    assert main([*SCORE, *COUNT]) == 0
    shift = [a["rewards"]["counting:counted"] for a in table()["prompts"]]
    assert min(shift) > 1, "the reward's own file was edited"


def test_another_version_of_the_package_judges_again(here, capsys, monkeypatch):
    assert main([*SCORE, *COUNT, "jpeg-compress"]) == 0, capsys.readouterr().err
    first, lines = table(), Path("out", SCORES).read_text().count("\n")
    jpeg = registry.load(rewards.REWARDS, "jpeg-compress")
    monkeypatch.setattr(jpeg, "__call__", lambda self, views, prompts: torch.full(views.rgb.shape[:2], 5.0))
    assert main([*SCORE, *COUNT, "jpeg-compress"]) == 0
    assert table() == first and Path("out", SCORES).read_text().count("\n") == lines
    monkeypatch.setattr(marks, "__version__", "0.0.0")
    assert main([*SCORE, *COUNT, "jpeg-compress"]) == 0
    assert {row["rewards"]["jpeg-compress"] for row in table()["prompts"]} == {5.0}
    assert Path("out", SCORES).read_text().count("\n") == 2 * lines


def test_a_book_forgets_what_is_damaged(tmp_path):
    rows = [{"key": str(i), "views": [i]} for i in range(3)]
    Book(tmp_path).add(rows)
    whole = (tmp_path / SCORES).read_bytes()
    (tmp_path / SCORES).write_bytes(whole + b'{"key": "3", "vie')
    assert Book.open(tmp_path).rows == {"0": [0.0], "1": [1.0], "2": [2.0]}
    assert (tmp_path / SCORES).read_bytes() == whole


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([*COUNT], "results"),
        ([*COUNT, "--json"], "--results goes without --json"),
        ([*COUNT, "a.png"], "--results goes without files"),
        ([*COUNT, "--prompt", "a"], "--results goes without --prompt"),
        (["--rewards", "dnc"], "reward dnc needs alpha, depth, normal, and"),
        (["--rewards", "more:refuses"], "cannot judge"),
        ([*COUNT, "--num-views", "3"], "12 of 36 pictures (3 views of 12 prompts) are missing"),
    ],
)
def test_refusals(here, capsys, args, said):
    base = ["score", "--results", "first=one", "second=two", "--prompts", "list.csv", "--out", "out"]
    if said == "results":
        base = ["score", "--results", "first=one", "--prompts", "list.csv"]
        said = "--results needs --out"
    args = args if "a.png" not in args else [*args[:-1]]
    command = [*base, *args] if said != "--results goes without files" else ["score", "a.png", *base[1:], *args]
    assert said in refused(capsys, command)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (["x=nowhere"], "no folder nowhere"),
        (["base/=one"], "cannot be called"),
        (["x=one", "x=one"], "given twice as x"),
        (["x=one", "y=more"], "are missing"),
        (["mine.py"], "no folder mine.py"),
    ],
)
def test_bad_folders(here, capsys, results, said):
    Path("more").mkdir()
    Image.new("RGB", (W, H)).save("more/thing_number_a0.png")
    assert said in refused(capsys, ["score", "--results", *results, *SCORE[4:], *COUNT])


def test_damaged_pictures_are_all_told(here, capsys):
    for name in ("a", "c"):
        path = Path(f"two/thing_number_{name}1.png")
        path.write_bytes(path.read_bytes()[:-30])
    said = refused(capsys, [*SCORE, *COUNT])
    assert "2 of 24 results cannot be judged, the first: two/thing_number_a1.png is no sound picture" in said
    Image.new("RGB", (W + 1, H)).save("two/thing_number_a1.png")
    Image.new("RGB", (W, H)).save("two/thing_number_c1.png")
    said = refused(capsys, [*SCORE, *COUNT])
    assert f"has {W} x {H} pixels and two/thing_number_a1.png {W + 1} x {H}" in said


def test_other_folders_and_processes_are_left_alone(here, capsys):
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    assert "holds no scores" in refused(capsys, [*SCORE[:-1], "full", *COUNT])
    Path("busy").mkdir()
    with locked(Path("busy")):
        assert "another process" in refused(capsys, [*SCORE[:-1], "busy", *COUNT])


def test_without_results_their_options_mean_nothing(here, capsys):
    said = refused(capsys, ["score", "one/thing_number_a0.png", *COUNT, "--prompt", "a", "--out", "out"])
    assert "--out says nothing without --results" in said


def test_few_and_repeated_prompts_are_told(here, capsys):
    for path in list(Path("one").iterdir()):
        if path.stem[-2] not in "ab":
            path.unlink()
    Path("few.txt").write_text("thing number a\nthing number b\nthing number a\n")
    assert main(["score", "--results", "one", "--prompts", "few.txt", "--out", "out", *COUNT]) == 0
    err = capsys.readouterr().err
    assert "few.txt has 1 prompt that came before" in err and "2 prompts: with fewer than 10" in err
    assert table()["settings"]["interval"] == "student's t" and table()["results"][0]["name"] == "one"
    assert "Student" in Path("out/report.html").read_text()
    for path in Path("one").glob("thing_number_b*"):
        path.unlink()
    Path("few.txt").write_text("thing number a\n")
    assert main(["score", "--results", "one", "--prompts", "few.txt", "--out", "out", *COUNT]) == 0
    assert "1 prompt: there are no intervals" in capsys.readouterr().err
    assert "no intervals" in Path("out/report.html").read_text()


def test_rows_of_threestudio(here, capsys):
    folder = Path("three", "thing_number_a@20250101-120000", "save", "it20-test")
    folder.mkdir(parents=True)
    for i in range(5):
        row = np.concatenate([np.full((H, H, 3), 50 * i, np.uint8), np.full((H, 2 * H, 3), 255, np.uint8)], axis=1)
        Image.fromarray(row).save(folder / f"{i}.png")
    Path("a.txt").write_text("thing number a\n")
    args = ["score", "--results", "three", "--prompts", "a.txt", *COUNT]
    assert main([*args, "--out", "out"]) == 0, capsys.readouterr().err
    assert table()["prompts"][0]["views"]["counting:counted"] == pytest.approx([50 * i / 255 for i in range(4)])
    Image.new("RGB", (H + 1, H)).save(folder / "2.png")
    capsys.readouterr()
    assert "is no row of square pictures" in refused(capsys, [*args, "--out", "new"])


def run(folder: str, prompt: str, seed: int = 0) -> Path:
    """A run as `align3d optimize` leaves it, without a scene."""
    out = Path(folder)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps({"config": {"prompt": prompt, "loop": {"updates": 3}}}))
    (out / "metrics.jsonl").write_text('{"step": 2}\n' if seed == 2 else '{"step": 3}\n')
    return out


def test_runs_of_optimize(here, capsys):
    """Scenes are seen by the cameras of evaluations; a method has the mean of its seeds."""
    for seed, out in enumerate("xyz"):
        for i, prompt in enumerate(("a red thing", "a blue thing")):
            scene = ball(40, 0.3 + 0.1 * i, 0.5, torch.Generator().manual_seed(seed))
            write_ply(run(f"{out}/{i:03}-thing", prompt, seed) / "scene.ply", scene)
    args = ["score", "--results", "x=x", "both=y", "both=z", "--size", "16", "--num-views", "3", "--out", "out"]
    assert main([*args, "--rewards", "closed_prior:red", "more:hollow"]) == 0
    assert "2 runs ended before all updates: z/000-thing (2 of 3), z/001-thing (2 of 3)" in capsys.readouterr().err
    found = table()
    assert found["settings"]["methods"] == {"x": ["x"], "both": ["y", "z"]} and found["results"][1]["seeds"] == 2
    row = next(row for row in found["prompts"] if row["files"] == ["z/000-thing/scene.ply"])
    scene = read_ply(Path(row["files"][0]))
    views = scene.render(evaluation_cameras(16, [60.0, 180.0, 300.0]), background=(1.0, 1.0, 1.0))
    assert row["views"]["closed_prior:red"] == pytest.approx(red(views, ["a red thing"])[0].tolist(), abs=1e-5)
    four = [row["rewards"]["closed_prior:red"] for row in found["prompts"] if row["method"] == "both"]
    means = [np.mean(four[:2]), np.mean(four[2:])]
    assert found["results"][1]["prompts"]["closed_prior:red"] == pytest.approx(means) and len(set(four)) == 4
    assert len(row["views"]["more:hollow"]) == 3


def test_fields_and_pictures_of_runs(here, capsys):
    options = NerfOptions(march=March(samples=16))
    nerf = Nerf.begun(options, torch.Generator().manual_seed(0))
    write_nerf(run("n/0", "a red thing") / "scene.safetensors", nerf)
    flat = [arg if arg != "run" else "p/0" for arg in OPTIMIZE if arg not in ("--scene.num", "64")]
    assert main([*flat, "--scene", "picture", "--updates", "1"]) == 0, capsys.readouterr().err
    files = sorted(path.name for path in Path("p/0").glob("picture*"))
    assert files == ["picture-0.png", "picture-1.png", "picture-2.png"]
    args = ["score", "--results", "n", "p", "--size", "8", "--rewards", "closed_prior:red", "--out", "out"]
    assert main(args) == 0, capsys.readouterr().err
    of_nerf, of_pictures = (row["views"]["closed_prior:red"] for row in table()["prompts"])
    with torch.no_grad():
        views = nerf.scene().render(evaluation_cameras(8), want=["rgb"])
    assert of_nerf == pytest.approx(red(views, [""])[0].tolist(), abs=1e-5) and len(of_pictures) == 3
    capsys.readouterr()
    by_hand = [
        "score",
        "n/0/scene.safetensors",
        "--rewards",
        "closed_prior:red",
        "--prompt",
        "x",
        "--size",
        "8",
        "--json",
    ]
    assert main(by_hand) == 0
    assert json.loads(capsys.readouterr().out)["rewards"]["closed_prior:red"] == pytest.approx(
        np.mean(of_nerf), abs=0.05
    )


def test_samples_of_a_generator(here, capsys):
    sample = [
        "sample",
        "--model",
        "mine:Toy",
        "--prompts",
        "prompts.txt",
        "--num",
        "2",
        "--size",
        "24",
        "--frames",
        "0",
    ]
    assert main([*sample, "--out", "made"]) == 0, capsys.readouterr().err
    assert main(["score", "--results", "made", "--out", "out", "--size", "16", "--rewards", "mine:redness"]) == 0
    assert table()["results"][0]["seeds"] == 2 and len(table()["prompts"]) == 4


def test_a_judge_behind_an_endpoint_is_asked_once(here, capsys, monkeypatch):
    with vlm_server.serving(here, monkeypatch) as server:
        judge = ["--rewards", f"vlm-judge(model=m, cache={here / 'answers'})"]
        assert main([*SCORE, *judge]) == 0, capsys.readouterr().err
        assert len(server.asked) == 24 and server.most > 1, "several at a time"
        assert len(vlm_server.sent_pictures(server.asked[0])) == V, "all views of a result at once"
        assert main([*SCORE, *judge]) == 0
        assert len(server.asked) == 24
        assert all(len(row["views"]["vlm-judge"]) == 1 for row in table()["prompts"])


def test_prompts_that_a_reward_does_not_know(here, capsys):
    args = [*SCORE, "--rewards", "imagenet"]
    assert "knows no class" in refused(capsys, args)
    Path("list.csv").write_text("Prompts\n" + "".join(f"a red {n}\n" for n in ("chair", "teapot", "blorb")))
    for folder in ("one", "two"):
        for path in Path(folder).iterdir():
            path.unlink()
        for i in range(3):
            Image.new("RGB", (32, 32), (80 * i, 9, 9)).save(f"{folder}/{i}.png")
    assert main([*args, "--skip-unknown"]) == 0, capsys.readouterr().err
    assert "1 prompt of 3 left out" in capsys.readouterr().err
    assert [row["prompt"] for row in table()["prompts"]] == 2 * ["a red chair", "a red teapot"]


def test_nothing_is_left_of_what_was_refused(here, capsys):
    before = contents(Path())
    refused(capsys, [*SCORE, "--rewards", "more:refuses"])
    assert contents(Path()) == before and not Path("out").exists()


def test_scenes_and_pictures_of_one_size_are_no_batch():
    scene, picture, wide = (2, 8, 8, True), (2, 8, 8, False), (2, 8, 9, False)
    assert list(batches([scene, scene, picture, picture, wide])) == [[0, 1], [2, 3], [4]]
    assert list(batches([picture] * 10)) == [list(range(8)), [8, 9]]
    assert list(batches([(4, 4096, 4096, True)] * 2)) == [[0], [1]], "as many as memory holds"
    assert list(batches([])) == []
