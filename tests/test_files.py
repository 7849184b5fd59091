"""Files that others wrote: JSON of a bounded size, and lines of text that three readers cut alike."""

import json

import pytest

from align3d.commands.inputs import read_prompts
from align3d.files import MAX_JSON, read_json, read_lines
from align3d.models import prompt_cache_public
from align3d.prompt_rewards import keep_above

MARKS = "one\u2028line\x85still\x0cit"  # str.splitlines cuts at each of them


def test_the_object_of_a_json_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": "\xe9"}))
    assert read_json(path) == {"a": "\xe9"}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff\xfe\xfd", b"[" * 100_000, b"1" * 5000])
def test_damaged_json_is_one_line(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json is damaged \(.*\); copy it again") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_large_json_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"{}" + b" " * (MAX_JSON - 2))
    assert read_json(path) == {}
    with path.open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=f"more than {MAX_JSON} bytes"):
        read_json(path)


def test_lines_end_with_newlines_only(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(f"\ufeff{MARKS}\r\ntwo\rthree\n\nfour".encode())
    lines = [MARKS, "two", "three", "", "four"]
    assert read_lines(path, 100) == lines
    assert prompt_cache_public.read_lines(path) == lines
    assert read_prompts(path) == [line for line in lines if line]
    rows = [json.dumps({"prompt": line, "reward": len(line)}, ensure_ascii=False) for line in lines if line]
    (tmp_path / "r.jsonl").write_bytes(("\ufeff" + "\r\n".join(rows)).encode())
    assert keep_above(read_prompts(path), tmp_path / "r.jsonl", 4.0) == [MARKS, "three"]


def test_text_that_is_none(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"p\.txt is not UTF-8 text \(.* at byte 3\); save it as UTF-8"):
        read_lines(path, 100)
    with pytest.raises(ValueError, match="has 5 bytes, more than a prompt file may have"):
        read_lines(path, 4)
