"""What the report says of a watched run, from its files alone."""

import json
import re
from html import unescape

import pytest

from align3d.report import write_report
from align3d.runs import Run
from align3d.watched import Watched, verdict

BASE = {"colour": 0.3, "dnc": 0.86, "diversity": 0.2, "fid": 30.0}
ERRORS = {"colour": 0.01, "dnc": 0.004, "diversity": 0.01, "fid": 2.0}


@pytest.fixture
def folder(tmp_path):
    """Writes a watched run's files: the numbers of its last look, at update 8, above or below the base model's."""

    def write(stop="", **changes):
        (tmp_path / "watch").mkdir()
        (tmp_path / "best").mkdir()
        config = {"reward": {"name": "colour"}, "model": {"name": "toy"}, "watch": {"stop_when": stop}}
        (tmp_path / "config.json").write_text(json.dumps({"config": config}))
        about = {"numbers": BASE, "spread": {"colour": 0.1, "dnc": 0.02}, "prompts": ["a", "b", "c"], "seeds": [4, 5]}
        (tmp_path / "watch/base.json").write_text(json.dumps(about))
        (tmp_path / "best/best.json").write_text(json.dumps({"step": 4, "value": 0.4, "best": "colour"}))
        rows = [{"step": i, "seconds": 2.0, "reward": i / 10} for i in range(1, 9)]
        for row, share in ((rows[3], 0.5), (rows[7], 1.0)):
            row |= {f"watch_{name}": value + share * changes.get(name, 0) for name, value in BASE.items()}
            row |= {f"watch_{name}_error": value for name, value in ERRORS.items()} | {"seconds_watch": 9.0}
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", html))


def said(folder, stop="") -> str:
    return words(verdict(Watched.of(Run.read(folder)), stop))


def test_hacking_is_named(folder):
    text = said(folder(colour=0.2, dnc=-0.02, fid=12.0))
    assert text.startswith(
        "Reward hacking? After 8 updates, colour, which is trained on, has risen by 0.200 (± 0.0100)"
    )
    assert "while dnc has fallen by 0.0200 (± 0.0040)." in text
    assert "FID 42.00, +12.00 (± 2.000) above its floor of 30.00, which is there without any training." in text
    assert "best/ is that of update 4, where colour was highest" in text and "ended" not in text


def test_a_fall_within_its_error_is_no_hacking(folder):
    text = said(folder(colour=0.2, dnc=-0.007))
    assert "hacking" not in text and "no watched reward has fallen by more than twice its standard error" in text


def test_without_a_rise_there_is_nothing_to_hack(folder):
    text = said(folder(colour=0.015, dnc=-0.1))
    assert "hacking" not in text and "colour, which is trained on, has not risen" in text


def test_what_ended_the_run_is_told(folder):
    out = folder(fid=12.0)
    assert "That look ended the run: fid > 40." in said(out, "dnc < 0.5 or fid > 40")
    assert "ended" not in said(out, "fid > 43") and "ended" not in said(out, "damaged")


def test_what_ended_the_run_may_be_relative_to_the_base_model(folder):
    out = folder(dnc=-0.03, fid=12.0)
    assert "That look ended the run: dnc < base - 1 sd (0.84)." in said(out, "dnc < base - 2sd or dnc < base - 1sd")
    assert "That look ended the run: fid > base + 5 se (40)." in said(out, "dnc < base - 8se or fid > base + 5se")
    assert "ended" not in said(out, "fid > base + 13 or fid > base + 7se or dnc < base - 0.031")
    assert "ended" not in said(out, "fid > base + 1sd") and "ended" not in said(out, "new > base")


def test_the_page_has_curves_and_a_table(folder):
    page = write_report(folder("fid > 40", colour=0.2, dnc=-0.02, fid=12.0)).read_text(encoding="utf-8")
    text = words(page)
    assert ">Watched<" in page and "3 prompts with 2 seeds each" in text and "That look ended the run" in text
    assert page.index("Reward hacking?") < page.index(">Watched<") < page.index(">Training<")
    assert 'aria-label="change from the base model against step' in page
    assert "colour (trained on) ends with 2.000 at 8.000; dnc ends with" in text or "ends with 2.000" in page
    assert 'aria-label="FID: from 30.00 to 42.00 over 3 values"' in page and 'class="base"' in page
    cells = re.findall(r'<td[^>]*data-label="([^"]+)"[^>]*><span>([^<]+)', page)[:5]
    assert [c[0] for c in cells] == ["base", "step 4 (best)", "step 8", "change", "± error"]
    assert [c[1] for c in cells] == ["0.300", "0.400", "0.500", "+0.200", "0.0100"]
    assert "watch colour" not in text and "9 s" not in text, "in their own section, and no part of an update"


def test_damaged_and_missing_files_are_left_out(folder):
    out = folder()
    for damage in ("", "[]", '{"numbers": 3}', '{"numbers": {"colour": "x"}, "spread": {}}'):
        (out / "watch/base.json").write_text(damage)
        assert Watched.of(Run.read(out)) is None
        assert ">Watched<" not in write_report(out).read_text(encoding="utf-8")
