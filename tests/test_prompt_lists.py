"""Lists of prompts in the layouts that are published."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from align3d.commands import embed
from align3d.commands.inputs import read_prompts
from align3d.prompt_lists import read_list

DRAWBENCH = """Prompts,Category
A red colored car.,Colors
"A stack of 3 plates. A blue plate is on the top, sitting on a blue plate.",DALL-E
An elephant is behind a tree.,Gary Marcus et al.\x20

A red colored car.,Again
"""
COCO = {
    "info": {"year": 2017},
    "images": [{"id": 179765, "file_name": "000000179765.jpg"}],
    "annotations": [
        {"image_id": 179765, "id": 38, "caption": "A black Honda motorcycle parked in front of a garage."},
        {"image_id": 190236, "id": 182, "caption": "An office cubicle\nwith four chairs.\n"},
    ],
}


@pytest.fixture
def put(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
        return path

    return write


def test_drawbench(put):
    found = read_list(put("drawbench.csv", DRAWBENCH))
    long = "A stack of 3 plates. A blue plate is on the top, sitting on a blue plate."
    car, tree = "A red colored car.", "An elephant is behind a tree."
    assert found.prompts == (car, long, tree, car)
    assert found.categories == ("Colors", "DALL-E", "Gary Marcus et al.", "Again") and found.ids is None
    once = found.unique()
    assert once.prompts == (car, long, tree), "in the order of the file"
    assert once.categories == ("Colors", "DALL-E", "Gary Marcus et al."), "of the first time"
    tabs = put("d.tsv", "category\tprompt\nx\ta, b\n")
    assert read_list(tabs) == read_list(put("d.csv", 'category,prompt\nx,"a, b"\n'))


def test_coco(put):
    found = read_list(put("captions_val2017.json", COCO))
    assert found.prompts == (
        "A black Honda motorcycle parked in front of a garage.",
        "An office cubicle with four chairs.",
    )
    assert found.ids == ((38, 179765), (182, 190236)) and found.categories is None


def test_other_json(put):
    assert read_list(put("a.json", ["a cup", "a hat"])).prompts == ("a cup", "a hat")
    library = read_list(put("b.json", {"dreamfusion": ["a corgi", "a car"], "magic3d": ["a frog"]}))
    assert library.prompts == ("a corgi", "a car", "a frog")
    assert library.categories == ("dreamfusion", "dreamfusion", "magic3d")
    objects = read_list(put("c.json", [{"prompt": "a cup", "category": "x"}, {"prompt": "a hat"}]))
    assert objects.categories == ("x", "")
    assert read_list(put("d.json", {"mug": 3, "dog": 0})).prompts == ("mug", "dog"), "names of classes"


def test_a_model_may_have_lists_of_its_own(put):
    """In the place of the usual ones alone."""
    own = put("own.txt", "a cup\n")
    model, without = SimpleNamespace(prompt_list=lambda: own), SimpleNamespace(prompt_list=lambda: None)
    assert read_prompts(Path("train"), model) == read_prompts(Path("heldout"), model) == ["a cup"]
    assert read_prompts(put("plain.txt", "a hat\n"), model) == ["a hat"]
    assert len(read_prompts(Path("heldout"))) > 9 and len(read_prompts(Path("unconditional"), model)) == 20
    assert read_prompts(Path("heldout"), without) == read_prompts(Path("heldout"))
    with pytest.raises(
        ValueError, match=r"^prompt_list\(\) of the model failed: TypeError: 'PosixPath' object is not call"
    ):
        read_prompts(Path("train"), SimpleNamespace(prompt_list=own))


def test_embed_takes_them_too(put, monkeypatch, tmp_path):
    """A cache of `train` has the prompts that `train` trains on."""
    own, found = put("own.txt", "a cup\n"), []
    model = SimpleNamespace(prompt_list=lambda: own, text_source=lambda **_: None)
    monkeypatch.setattr("align3d.embedding.embed", lambda source, prompts, *_, **__: found.extend(prompts) or found)
    embed.run(embed.Embed(prompts=Path("train"), out=tmp_path / "o", device="cpu"), names={"model": "m"}, model=model)
    assert found == ["a cup"]


def test_all_commands_read_them(put):
    assert read_prompts(put("drawbench.csv", DRAWBENCH))[:1] == ["A red colored car."]
    assert read_prompts(put("plain.txt", "# none\n a cup \n\na hat\n")) == ["a cup", "a hat"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "Words,Category\na,b\n", "no column of prompts; the first line must name one Prompts, got Words"),
        ("a.csv", "Prompts,Category\na, b,c\n", "row 2 has 3 columns, the first one 2; quote"),
        ("a.csv", 'Prompts,Category\n"a, b\n', "no table that can be read"),
        ("a.csv", "", "must name one Prompts, got nothing"),
        ("a.csv", "Prompts,Category\n", "has no prompts"),
        ("a.json", "{", "is damaged"),
        ("a.json", '{"a": 1, "b": []}', "'a' must be a list of texts"),
        ("a.json", '"a"', "holds no list of prompts"),
        ("a.json", "[]", "has no prompts"),
        ("a.json", '["a", ""]', "prompt 2 of 2 is empty"),
        ("a.json", '["a", {"image": 3}]', "prompt 2 of 2 is no text"),
        ("a.txt", "a\0b", "NUL bytes"),
    ],
)
def test_bad_lists_are_refused(put, name, text, said):
    path = put(name, text)
    with pytest.raises(ValueError) as caught:
        read_list(Path(path))
    assert said in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)
