import io
import json
import math
import subprocess

import pytest

from align3d import files, log


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.atomic_write(path, "old")
    files.atomic_write(path, b"new")
    assert path.read_text() == "new"
    with pytest.raises(UnicodeEncodeError):
        files.atomic_write(path, "\ud800")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def rows(*steps):
    return [{"step": step, "reward": step / 3} for step in steps]


def test_rows_come_back_to_the_last_bit_and_infinity_becomes_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with log.Metrics(path) as metrics:
        metrics.write({"step": 1, "reward": 0.1 + 0.2})
        assert log.read_metrics(path) == [{"step": 1, "reward": 0.1 + 0.2}]  # on disk at once
        metrics.write({"step": 2, "reward": math.inf})
        metrics.sync()
    assert log.read_metrics(path)[1] == {"step": 2, "reward": None}


def test_resume_cuts_rows_after_the_checkpoint_and_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with log.Metrics(path) as metrics:
        for row in rows(1, 2, 3):
            metrics.write(row)
    with path.open("a") as handle:
        handle.write('{"step": 4, "rew')
    assert log.read_metrics(path) == rows(1, 2, 3)
    with log.Metrics(path, 2) as metrics:
        metrics.write({"step": 3, "reward": 9.0})
        assert metrics.rows == [*rows(1, 2), {"step": 3, "reward": 9.0}]
    assert log.read_metrics(path) == metrics.rows


def test_damaged_and_missing_rows_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    for wanted in (None, 3):
        with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is damaged"):
            log.read_metrics(path, wanted)
    path.write_text('{"step": 1}\n{"step": 3}\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 3 is damaged; restore the file, or delete it"):
        log.read_metrics(path)


@pytest.mark.parametrize("content", [None, "", '{"step": 1}\n', '{"step": 1}\n{"step": 2, "rew'])
def test_lost_rows_are_missed_aloud_and_the_run_goes_on(tmp_path, capsys, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    had = [{"step": 1}] if content else []
    with log.Metrics(path, 2) as metrics:
        metrics.write({"step": 3})
    assert f"warning: {path}: {2 - len(had)} of the 2 rows" in capsys.readouterr().err
    assert metrics.rows == log.read_metrics(path) == [*had, {"step": 3}]
    with log.Metrics(path, 3) as metrics:  # and once more
        metrics.write({"step": 4})
    assert log.read_metrics(path) == [*had, {"step": 3}, {"step": 4}]


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", "[" * 100_000, None])
def test_json_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        log.read_json(path)


def test_a_huge_json_file_is_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as handle:
        handle.truncate(1 << 40)  # sparse; reading it would end the test
    with pytest.raises(ValueError, match="bytes, more than"):
        log.read_json(path)


def test_plain_survives_json(tmp_path):
    value = {"a": (1, 2.5), "b": {"c": tmp_path, "d": None}, "e": math.inf, "f": True, "g": frozenset({"y", "x"})}
    want = {"a": [1, 2.5], "b": {"c": str(tmp_path), "d": None}, "e": "inf", "f": True, "g": ["x", "y"]}
    assert json.loads(json.dumps(log.plain(value), allow_nan=False)) == log.plain(value) == want


def test_provenance_names_versions_commit_and_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["align3d", "train"])
    found = log.provenance()
    assert found["versions"]["torch"] and found["versions"]["align3d"] and found["command"] == ["align3d", "train"]
    assert log.git_commit(tmp_path) is None

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    assert log.git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("22")
    assert log.git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (42.0, "42 s"),
        (59.7, "1:00"),
        (185.0, "3:05"),
        (7385.0, "2:03:05"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations_read_well(seconds, text):
    assert log.duration(seconds) == text


def show(stream, **options):
    with log.Progress(4, done=1, stream=stream, **options) as bar:
        for step in (2, 3, 4):
            bar.row({"step": step, "seconds": 1.25, "reward": 0.5})
    return stream.getvalue()


def test_plain_lines_are_few_and_the_last_is_there():
    lines = show(io.StringIO()).splitlines()
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert "reward 0.5  1.25 s/step" in lines[0] and lines[0].endswith("left")
    assert len(show(io.StringIO(), every=0.0).splitlines()) == 3
    assert show(io.StringIO(), show=False) == show(Terminal(), show=False) == ""


def test_a_terminal_gets_a_bar():
    text = show(Terminal())
    assert "4/4" in text and "reward 0.5" in text and "s/step" in text and "left" in text


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    return now


def test_what_is_counted_is_told_now_and_then(clock, capsys):
    tell, told = log.counting("base (1 of 2)"), []
    for seconds, done in ((1, 0.5), (1, 1), (1, 2), (9, 2.25), (5, 3), (1, 4)):
        clock[0] += seconds
        tell(done, 4)
        told.append(capsys.readouterr().err)
    first, late, last = "1/4 samples, 6 s left\n", "2.2/4 samples, 9 s left\n", "4/4 samples, 0 s left\n"
    assert told == ["", *(f"base (1 of 2): {line}" if line else "" for line in (first, "", late, "", last))]


def test_what_is_quick_is_not_told(clock, capsys):
    quick, slow = (log.counting("pictures", brief=True) for _ in range(2))
    for tell, seconds in ((quick, 1), (slow, 11)):
        tell(0.0, 2)
        clock[0] += seconds
        tell(1, 2)
        tell(2, 2)
    assert capsys.readouterr().err == "pictures: 1/2 samples, 12 s left\npictures: 2/2 samples, 0 s left\n"


def test_peak_memory_is_that_of_a_process_with_torch_in_it():
    import torch

    assert 50 < log.peak_memory(torch.zeros(1)) < 1e6


@pytest.mark.parametrize("words", [["-"], ["-c", "x"], [""], [], ["/lib/ipykernel_launcher.py", "-f", "k.json"]])
def test_a_run_from_python_has_no_command(monkeypatch, words):
    monkeypatch.setattr("sys.argv", words)
    assert log.provenance()["command"] is None


def test_a_run_has_the_command_that_started_it(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/align3d", "demo", "--seed", "2"])
    assert log.provenance()["command"] == ["/usr/bin/align3d", "demo", "--seed", "2"]
