"""The judge behind an endpoint, against a local server: what is asked, what is kept, what is no answer."""

import json
import time

import numpy as np
import pytest
import torch
from command_checks import refused
from PIL import Image
from vlm_server import KEY, PROMPTS, B, H, V, W, honest, judge, marks, reply, sent_pictures, serving, text_of, views

from align3d.cli import main
from align3d.config import described
from align3d.rewards import endpoint, vlm_judge
from align3d.rewards.rubrics import OBJECT, PICTURE
from align3d.rewards.vlm_judge import VLMJudge
from align3d.scenes.cameras import orbit
from align3d.types import Views


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serving(tmp_path, monkeypatch) as one:
        yield one


def test_one_question_for_all_views_of_an_object(server):
    seen = views()
    found = judge()(seen, PROMPTS)
    assert found.shape == (B, 1) and found.dtype == torch.float32 and not found.requires_grad
    assert len(server.asked) == B and len({x.item() for x in found}) == B
    for i, prompt in enumerate(PROMPTS):
        (asked,) = [one for one in server.asked if json.dumps(prompt) in text_of(one)]
        assert asked["path"] == "/v1/chat/completions" and asked["model"] == "m" and asked["temperature"] == 0
        schema = asked["response_format"]["json_schema"]
        assert (
            schema["strict"]
            and set(schema["schema"]["required"]) == {"remarks", *OBJECT.marks}
            and len(OBJECT.aspects) == 5
        )
        assert all(name in asked["messages"][0]["content"] for name in OBJECT.marks)
        pictures = np.stack(sent_pictures(asked))
        assert np.abs(pictures / 255 - seen.rgb[i].permute(0, 2, 3, 1).numpy()).max() <= 0.5001 / 255
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)


def test_a_row_depends_on_its_object_and_prompt_alone(server, tmp_path):
    seen = views()
    whole = judge(cache=tmp_path / "a")(seen, PROMPTS)
    turned = Views(seen.cameras, rgb=seen.rgb.flip(0))
    assert torch.equal(judge(cache=tmp_path / "b")(turned, PROMPTS[::-1]), whole.flip(0))
    for i in range(B):
        alone = Views(orbit(*[torch.zeros(1, V)] * 2, height=H, width=W), rgb=seen.rgb[i : i + 1])
        assert torch.equal(judge(cache=tmp_path / "c")(alone, PROMPTS[i : i + 1])[0], whole[i])


def test_any_mark_can_be_the_reward(server):
    server.answer = lambda _: reply(marks(overall=9, geometry=2, texture=8.5))
    assert judge()(views(), PROMPTS).tolist() == [[9.0]] * B
    assert judge(mark="geometry")(views(), PROMPTS).tolist() == [[2.0]] * B
    assert judge(mark="mean")(views(), PROMPTS)[0, 0].item() == pytest.approx((2 + 8.5 + 3 * 5) / 5)
    assert len(server.asked) == B  # one answer has all marks


def test_large_views_are_shrunk(server):
    judge(size=16)(views(), PROMPTS)
    assert {x.shape for x in sent_pictures(server.asked[0])} == {(11, 16, 3)}
    with pytest.raises(ValueError, match="reward vlm-judge needs colours from 0 to 1, got -"):
        judge()(Views(views().cameras, rgb=views().rgb - 0.5), PROMPTS)
    with pytest.raises(ValueError, match="reward vlm-judge needs views with rgb"):
        judge()(Views(views().cameras), PROMPTS)


def test_no_answer_is_asked_for_twice(server, tmp_path):
    first = judge()(views(), PROMPTS)
    assert torch.equal(judge(timeout=7.0, mark="overall")(views(), PROMPTS), first) and len(server.asked) == B
    judge()(views(), ["another", PROMPTS[1]])
    assert len(server.asked) == B + 1
    judge()(views(seed=1), PROMPTS)
    assert len(server.asked) == 2 * B + 1
    VLMJudge(model="n")(views(), PROMPTS)
    assert len(server.asked) == 3 * B + 1
    twins = Views(views().cameras, rgb=views().rgb[:1].expand(B, -1, -1, -1, -1) * 0.5)
    assert judge()(twins, ["twins"] * B).unique().numel() == 1 and len(server.asked) == 3 * B + 2
    files = list((tmp_path / "cache/align3d/vlm-judge").rglob("*.json"))
    assert len(files) == 3 * B + 2 and not any(KEY in path.read_text() for path in files)
    kept = json.loads(files[0].read_text())
    assert kept["marks"].keys() == set(OBJECT.marks) and kept["tokens"] == [1000, 50] and kept["remarks"] == "fine"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"marks": {"overall": 11}}', b"[" * 60000, b"\xff\xfe", b'{"marks"'])
def test_damaged_answers_are_asked_for_again(server, tmp_path, content):
    first = judge(cache=tmp_path / "kept")(views(), PROMPTS)
    for path in (tmp_path / "kept").rglob("*.json"):
        path.write_bytes(content)
    assert torch.equal(judge(cache=tmp_path / "kept")(views(), PROMPTS), first) and len(server.asked) == 2 * B


def test_many_at_a_time_but_no_more(server):
    def slow(asked):
        end = time.monotonic() + 5
        while server.most < 3 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.02)
        return honest(asked)

    server.answer = slow
    judge(concurrency=3)(views(7), [f"thing {i}" for i in range(7)])
    assert server.most == 3 and len(server.asked) == 7


def test_rubbish_is_asked_about_once_more(server):
    server.answer = lambda asked: honest(asked) if len(asked["messages"]) > 2 else reply("Nice cup! 7/10")
    found = judge()(views(1), PROMPTS[:1])
    first, second = server.asked
    assert second["messages"][:2] == first["messages"] and found[0, 0] > 0
    assert second["messages"][2] == {"role": "assistant", "content": "Nice cup! 7/10"}
    assert "it is no JSON object" in second["messages"][3]["content"]


def test_rubbish_twice_is_an_error_and_loses_nothing(server):
    noise = f"{KEY} \x1b\n" + "blah " * 100
    server.answer = lambda asked: reply(noise) if "cup 2" in text_of(asked) else honest(asked)
    prompts = [f"cup {i}" for i in range(4)]
    with pytest.raises(ValueError, match="no marks for 'cup 2': it is no JSON object, asked twice; m said") as error:
        judge(concurrency=1)(views(4), prompts)
    assert str(error.value).count("blah") == 39 and KEY not in str(error.value) and "\n" not in str(error.value)
    assert len(server.asked) == 4  # cup 3 is not asked about
    server.answer = honest
    assert judge()(views(4), prompts).shape == (4, 1) and len(server.asked) == 6


def test_servers_without_schemas(server):
    server.answer = lambda _: reply(f"Here you are:\n```json\n{marks(3)}\n```\nAnything else?")
    assert judge()(views(1), ["fenced"]).item() == 3

    def strict(asked):
        for name in ("response_format", "max_tokens"):
            if name in asked:
                return 400, {}, json.dumps({"error": {"message": f"Unsupported parameter: '{name}'"}}).encode()
        return reply(marks(4))

    server.answer = strict
    server.asked.clear()
    assert judge()(views(1), ["refused"]).item() == 4 and len(server.asked) == 3
    assert judge()(views(1), ["remembered"]).item() == 4 and len(server.asked) == 4
    server.answer = lambda _: json.dumps({"choices": [{"message": {"content": [{"text": marks(6)}]}}]}).encode()
    assert judge()(views(1), ["parts"]).item() == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no answer"),
        ("[1, 2]", "it is no JSON object"),
        ("{" * 10**5, "it is no JSON object"),
        (marks(11), "overall must be a number from 0 to 10, and is '11'"),
        (marks(-1), "overall must be"),
        (marks(texture=None), "texture must be a number from 0 to 10, and is 'None'"),
        (marks(geometry="7"), "geometry must be"),
        (marks(geometry=True), "geometry must be"),
        (marks(float("nan")), "and is 'nan'"),
        ('{"overall": 5}', "alignment must be a number from 0 to 10, and is missing"),
        ('{"alignment": ' + "9" * 5000 + "}", "it is no JSON object"),
    ],
)
def test_marks_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        OBJECT.read(text)


def test_replies_that_are_none(server):
    """What came instead is told, without the key."""
    thoughts = {"role": "assistant", "content": None, "reasoning": f"hm {KEY}"}
    for body, said in (
        ({}, "the reply has no choices and is '{}'"),
        ({"choices": []}, "has no choices and is '{\"choices\": []}'"),
        ({"choices": 3, "usage": [1]}, "has no choices and is"),
        ({"error": {"message": "out of credit"}}, "out of credit"),
        ({"choices": [{"message": None}]}, "its message is 'null'"),
        ({"choices": [{"message": thoughts}]}, '"reasoning": "hm ***"'),
        ({"choices": [{"message": {}, "finish_reason": "content_filter"}]}, "'{}', finish_reason content_filter"),
        ({"choices": [{"message": thoughts, "finish_reason": "length"}]}, "nothing within 1000 tokens"),
    ):
        server.asked.clear()
        server.answer = lambda _, body=body: json.dumps(body).encode()
        with pytest.raises(ValueError, match="there is no answer, asked twice; m said nothing") as caught:
            judge()(views(1), PROMPTS[:1])
        assert said in str(caught.value)
        assert KEY not in str(caught.value) and len(server.asked) == 2
        assert [m["role"] for m in server.asked[1]["messages"]] == ["system", "user", "user"], "no empty message"


def test_pictures_are_asked_about_one_by_one(server):
    """As the grader of the paper has it: other aspects, a question for each view."""
    given = iter(range(B * V))

    def answer(asked):
        mark = next(given)
        return reply(json.dumps({"remarks": "", **dict.fromkeys(PICTURE.aspects, 2), "overall": mark}))

    server.answer = answer
    one = judge(of="picture", concurrency=1)
    seen = views()
    found = one(seen, PROMPTS)
    assert found.shape == (B, V) and found.flatten().tolist() == list(range(B * V))
    assert (
        len(server.asked) == B * V
        and "Object" not in text_of(server.asked[0])
        and "picture" in text_of(server.asked[0])
    )
    for asked, expected in zip(server.asked, seen.rgb.flatten(0, 1), strict=True):
        (picture,) = sent_pictures(asked)
        np.testing.assert_array_equal(picture, (expected.movedim(0, -1) * 255 + 0.5).byte().numpy())
        schema = asked["response_format"]["json_schema"]["schema"]
        assert set(schema["required"]) == {"remarks", *PICTURE.marks} and "mood" in asked["messages"][0]["content"]
        assert "3D" not in asked["messages"][0]["content"]
    assert torch.equal(one(seen, PROMPTS), found) and len(server.asked) == B * V, "kept"
    assert judge(of="picture", mark="mood")(seen, PROMPTS).eq(2).all()
    server.answer = honest
    assert judge()(seen, PROMPTS).shape == (B, 1) and len(server.asked) == B * V + B, "other questions"


def test_marks_are_those_of_what_is_marked():
    with pytest.raises(ValueError, match=r"mark must be one of alignment, geometry, .* for of=object, got 'mood'"):
        VLMJudge(mark="mood")
    with pytest.raises(ValueError, match="for of=picture, got 'texture'"):
        VLMJudge(of="picture", mark="texture")


def test_the_key_is_nowhere(server, tmp_path, caplog):
    server.answer = lambda _: reply(marks(5, remarks=f"your key is {KEY}"))
    one = judge(cache=tmp_path / "kept")
    one(views(), PROMPTS)
    texts = [path.read_text() for path in (tmp_path / "kept").rglob("*.json")]
    texts += [repr(one), str(described(one, "vlm-judge")), repr(endpoint.from_environment(60.0, 5)), caplog.text]
    assert len(texts) == B + 4 and not any(KEY in text for text in texts) and "***" in texts[0]


def test_check_before_any_work(server, tmp_path, monkeypatch):
    judge().check(PROMPTS)
    assert not server.asked
    with pytest.raises(ValueError, match=r"needs the name of a model, as the endpoint has it: vlm-judge\(model=NAME"):
        VLMJudge().check(PROMPTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot keep answers in .*file: .*; choose another folder"):
        judge(cache=tmp_path / "file").check(PROMPTS)
    vlm_judge._reach.cache_clear()
    server.models = (404, {}, b"")  # not every endpoint has a list
    judge().check(PROMPTS)
    vlm_judge._reach.cache_clear()
    server.models = (401, {}, f"what is {KEY}?".encode())
    with pytest.raises(ValueError, match=r"refuses the key: 401 Unauthorized: what is \*\*\*\?; correct ALIGN3D_VLM_"):
        judge().check(PROMPTS)
    monkeypatch.setenv("ALIGN3D_VLM_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ValueError, match=r"cannot reach http://.*:9/v1: Connection refused; start the server"):
        judge().check(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size must be 16 to 4096, got 8"),
        ({"concurrency": 0}, "concurrency must be 1 to 64, got 0"),
        ({"retries": -1}, "retries must be 0 to 100, got -1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"patience": float("nan")}, "patience must be above 0"),
        ({"input_price": -1.0}, "input_price must be 0 or more"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        VLMJudge(**options)


def test_on_the_command_line(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((H, W, 3), np.uint8)).save("a.png")
    args = ["score", "a.png", "--prompt", "a red cup", "--json", "--rewards"]
    assert main([*args, "vlm-judge(model=m)", "shape=vlm-judge(model=m,mark=geometry)"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"] == {"vlm-judge": honest_mark("a red cup"), "shape": 5.0}
    assert len(server.asked) == 1
    server.answer = lambda _: (403, {}, f"no {KEY}".encode())
    line = refused(capsys, [*args, "vlm-judge(model=other)"])
    assert line.endswith("reward vlm-judge got no marks for 'a red cup': 403 Forbidden: no ***")
    assert VLMJudge.differentiable is False


def honest_mark(prompt: str) -> float:
    """What `honest` gives for black pictures."""
    return float((len(f"The text: {json.dumps(prompt)}\nThe object, 1 views of it:")) % 7)
