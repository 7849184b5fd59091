"""Whose a file is, by its name; what is missing, superfluous or unclear in a folder of results."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from align3d.judged.names import assign, key, literal
from align3d.judged.pieces import Method, found_in, methods, unfinished
from align3d.prompt_lists import PromptList
from align3d.scenes.files import READERS, Kind

PROMPTS = PromptList(("A red car.", "a cat, a hat", "One dog"))
H, W = 6, 9


def named(names, prompts=PROMPTS, views=0):
    return assign({name: name for name in names}, prompts, views, "here", "picture")


def said(names, prompts=PROMPTS, views=0):
    with pytest.raises(ValueError) as caught:
        named(names, prompts, views)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, size=(W, H), colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(path)
    return path


def test_names_of_the_evaluation_scripts():
    assert literal("a cat, a/hat: red") == "a_cat__a_hat__red"
    names = [literal(prompt) + str(i) for prompt in PROMPTS.prompts for i in range(3)]
    assert names[0] == "A_red_car.0" and names[3] == "a_cat__a_hat0"
    assert named(reversed(names)) == [names[:3], names[3:6], names[6:]]


@pytest.mark.parametrize(
    "names",
    [
        ["A_red_car.0", "a_cat__a_hat0", "One_dog0"],
        ["a_red_car", "a_cat_a_hat", "one_dog"],
        ["A red car.", "a cat, a hat", "One dog"],
        ["000-a-red-car", "001-a-cat-a-hat", "002-one-dog"],
        ["A_red_car.@20250101-120000", "a_cat,_a_hat@20250101-130000", "One_dog@20250102-120000"],
        ["0", "1", "2"],
        ["001", "002", "003"],
    ],
)
def test_one_picture_each(names):
    assert named(names[::-1]) == [[name] for name in names]
    assert "is missing: 'a cat, a hat'" in said(names[::2], views=1)


def test_views_by_number():
    assert named(["0-0", "0_1", "1-0", "1-1", "2-0", "2-1"]) == [["0-0", "0_1"], ["1-0", "1-1"], ["2-0", "2-1"]]
    counted = [f"{literal(prompt)}_{i}" for prompt in PROMPTS.prompts for i in (1, 2)]
    assert named(counted) == [counted[:2], counted[2:4], counted[4:]], "from 1"


def test_what_is_missing_or_too_much_is_told():
    names = [literal(prompt) + str(i) for prompt in PROMPTS.prompts for i in range(4)]
    text = said([name for name in names if name not in ("A_red_car.2", "One_dog0")])
    assert text.startswith(
        "here: 2 of 12 pictures (4 views of 3 prompts) are missing: 'A red car.' view 2, 'One dog' view 0"
    )
    assert "4 pictures belong" not in text
    assert "1 picture belongs to no prompt or view: One_dog4" in said([*names, "One_dog4"])
    assert "a_blue_car0" in said([*names, "a_blue_car0"])
    assert "8 of 20 pictures" not in said(names, views=5) and "3 of 15 pictures" in said(names, views=5)
    assert "3 pictures belong to no prompt or view: A_red_car.3" in said(names, views=3)
    assert "are these the prompts?" in said(["x", "y", "z"])
    many = PromptList(tuple(f"thing {c}" for c in "abcdefgh"))
    assert said(["thing_a"], many).endswith("7 of 8 pictures are missing: the first 'thing b', 'thing c', 'thing d'")


def test_names_that_could_be_several_are_refused():
    twins = PromptList(("a cat: red", "a cat, red"))
    assert "could be several things: a_cat_red0 may be 'a cat" in said(["a_cat_red0", "a_cat__red0"], twins)
    close = PromptList(("room", "room 1"))
    assert named(["room_10", "room0"], close) == [["room0"], ["room_10"]], "as the scripts write it"
    assert "could be several" in said(["room-10", "room0"], close)
    assert "a.png and a.jpg are the same view" in said_of({"a.png": "a", "a.jpg": "a"}, PromptList(("a",)))


def said_of(names, prompts):
    with pytest.raises(ValueError) as caught:
        assign(names, prompts, 0, "here", "picture")
    return str(caught.value)


def test_numbers_of_coco():
    coco = PromptList(("x", "y", "z"), ids=((38, 179765), (182, 190236), (2, 7)))
    assert named(["000000190236", "000000000007", "000000179765"], coco) == [
        ["000000179765"],
        ["000000190236"],
        ["000000000007"],
    ]
    assert named(["38", "2", "182"], coco) == [["38"], ["182"], ["2"]], "by the caption"
    assert named(["0", "1", "2"], coco) == [["0"], ["1"], ["2"]], "by the place"
    swapped = PromptList(("x", "y"), ids=((1,), (0,)))
    assert "could be several" in said(["0", "1"], swapped)
    several = PromptList(("x", "y"), ids=((5, 9), (6, 9)))
    assert "could be several" in said(["9", "5"], several), "two captions of one picture"


def test_key():
    assert key("  A  'Red'-car. ") == "a_red_car" and key("ein Stück Größe") == "ein_stück_grösse"


def test_folders_as_generate_writes_them(tmp_path):
    for name in ("a_red_car", "a_cat_a_hat", "one_dog"):
        put(tmp_path / name / "image.png")
        (tmp_path / name / "optimization_video.mp4").write_bytes(b"")
    found = found_in(tmp_path, PROMPTS, 0)
    assert [piece.files[0].parent.name for (piece,) in found.values()] == ["a_red_car", "a_cat_a_hat", "one_dog"]
    assert not found["One dog"][0].is_scene
    put(tmp_path / "one_dog" / "second.png")
    with pytest.raises(ValueError, match=r"several pictures of 'One dog' must be 0\.png"):
        found_in(tmp_path, PROMPTS, 0)


def test_threestudio(tmp_path):
    home = tmp_path / "One_dog@20250101-120000" / "save"
    for i in range(13):
        put(home / "it10000-test" / f"{i}.png", (18, 6))
        put(home / "it9000-test" / f"{i}.png", (18, 6))
    put(home / "it10000-0.png", (18, 6))
    ((piece,),) = found_in(tmp_path, PromptList(("One dog",)), 0).values()
    assert [path.stem for path in piece.files] == ["0", "3", "6", "9"] and piece.rows, "around, the end as the start"
    assert piece.files[0].parent.name == "it10000-test"
    with pytest.raises(ValueError, match="14 views of 'One dog' are wanted, there are 13"):
        found_in(tmp_path, PromptList(("One dog",)), 14)
    (home / "it10000-test" / "7.png").unlink()
    with pytest.raises(ValueError, match="view 7 of 'One dog' is missing"):
        found_in(tmp_path, PromptList(("One dog",)), 0)
    put(tmp_path / "One_dog@20250102-120000" / "save" / "it10000-test" / "0.png")
    with pytest.raises(ValueError, match="are the same view of the same prompt"):
        found_in(tmp_path, PromptList(("One dog",)), 0)


def test_folders_of_views(tmp_path):
    for i, name in enumerate(("a_red_car", "a_cat_a_hat", "one_dog")):
        for view in range(3 if i else 2):
            put(tmp_path / name / f"{view}.png")
    with pytest.raises(ValueError, match=r"most prompts have 3 views, and 1 another number: 'A red car.' \(2\)"):
        found_in(tmp_path, PROMPTS, 0)
    put(tmp_path / "a_red_car" / "2.png")
    assert [len(piece.files) for (piece,) in found_in(tmp_path, PROMPTS, 3).values()] == [3, 3, 3]
    with pytest.raises(ValueError, match=r"has 3 views of 'A red car\.', not 4"):
        found_in(tmp_path, PROMPTS, 4)


def run(folder: Path, prompt: str, file="scene.ply", updates=4, made=4):
    folder.mkdir(parents=True)
    config = {"config": {"prompt": prompt, "loop": {"updates": updates}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i + 1}) + "\n" for i in range(made)))
    (folder / file).write_bytes(prompt.encode())


def test_runs(tmp_path):
    for i, prompt in enumerate(("a cup", "a hat")):
        run(tmp_path / "sds" / f"{i:03}-x", prompt)
        run(tmp_path / "best" / f"{1 - i:03}-x", prompt, made=4 - i)
        run(tmp_path / "other" / f"{i:03}-x", prompt)
    folders = {"sds": [tmp_path / "sds"], "best": [tmp_path / "best", tmp_path / "other"]}
    prompts, found = methods(folders, None, 0)
    assert prompts.prompts == ("a cup", "a hat")
    assert [[piece.prompt for piece in method.all_pieces] for method in found] == [
        ["a cup", "a hat"],
        ["a cup", "a cup", "a hat", "a hat"],
    ]
    assert isinstance(found[1], Method) and len(found[1].pieces[0]) == 2, "seeds"
    assert unfinished(found) == [f"{tmp_path / 'best' / '000-x'} (3 of 4)"]
    assert found[0].all_pieces[0].digest() != found[0].all_pieces[1].digest()
    with pytest.raises(ValueError, match="1 of 3 prompts have no run: 'a bag'"):
        methods(folders, PromptList(("a cup", "a bag", "a hat")), 0)
    with pytest.raises(ValueError, match="1 run of other prompts: 'a hat'"):
        methods(folders, PromptList(("a cup",)), 0)
    run(tmp_path / "best" / "002-x", "a bag")
    with pytest.raises(ValueError, match=r"best: 1 run of other prompts: 'a bag'"):
        methods(folders, None, 0)


def test_a_run_that_has_not_ended_is_refused(tmp_path):
    run(tmp_path / "a", "a cup", file="x", made=3)
    with pytest.raises(ValueError, match=r"must hold one scene .* has none; `align3d optimize --resume`"):
        found_in(tmp_path / "a", None, 0)
    (tmp_path / "a" / "picture-0.png").touch()
    (tmp_path / "a" / "picture-1.png").touch()
    (piece,) = found_in(tmp_path, None, 0)["a cup"]
    assert [path.name for path in piece.files] == ["picture-0.png", "picture-1.png"]
    with pytest.raises(ValueError, match="has 2 pictures, not 3 views"):
        found_in(tmp_path, None, 3)
    (tmp_path / "a" / "config.json").write_text('{"config": {"model": {"name": "toy"}}}')
    with pytest.raises(ValueError, match="no run of `align3d optimize`"):
        found_in(tmp_path, None, 0)


def test_scenes_of_another_kind(tmp_path, monkeypatch):
    """A run that has ended is not told to go on; what it has is named, and read once there is a reader."""
    run(tmp_path / "a", "a cup", file="scene.npz")
    for name in ("views.png", "done.json"):
        (tmp_path / "a" / name).touch()
    with pytest.raises(ValueError, match=r"has scene\.npz, which is no scene by its name; .*\.ply \(Gaussians\), \.s"):
        found_in(tmp_path / "a", None, 0)
    run(tmp_path / "b", "a cup", file="cup.npz")
    (tmp_path / "b" / "done.json").touch()
    with pytest.raises(ValueError, match=r"has cup\.npz, which is no scene by its name"):
        found_in(tmp_path / "b", None, 0)
    monkeypatch.setitem(READERS, ".npz", Kind("a cup", "nowhere:read"))
    (piece,) = found_in(tmp_path / "a", None, 0)["a cup"]
    assert piece.is_scene and [path.name for path in piece.files] == ["scene.npz"]


def test_samples(tmp_path):
    rows = []
    for i, (prompt, seed) in enumerate((("a cup", 0), ("a cup", 1), ("a hat", 0), ("a hat", 1))):
        (tmp_path / f"{i}.ply").touch()
        rows.append({"prompt": prompt, "seed": seed, "files": [f"{i}.ply", f"{i}.png"]})
    table = tmp_path / "samples.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = found_in(tmp_path, None, 0)
    assert {prompt: [piece.files[0].name for piece in own] for prompt, own in found.items()} == {
        "a cup": ["0.ply", "1.ply"],
        "a hat": ["2.ply", "3.ply"],
    }
    table.write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    with pytest.raises(ValueError, match="prompts have 1 to 2 samples, and must have as many each: 'a hat'"):
        found_in(tmp_path, None, 0)
    table.write_text(json.dumps(rows[0] | {"files": ["../x.ply"]}) + "\n")
    with pytest.raises(ValueError, match="line 1: no scene"):
        found_in(tmp_path, None, 0)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        found_in(tmp_path / "x", PROMPTS, 0)
    with pytest.raises(ValueError, match="has no results"):
        found_in(tmp_path, PROMPTS, 0)
    put(tmp_path / "0.png")
    with pytest.raises(ValueError, match="do not tell their prompts; give --prompts"):
        found_in(tmp_path, None, 0)
