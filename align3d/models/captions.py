"""Captions as PixArt's pipeline cleans them before T5 reads them: no links, tags, file names, long numbers, odd marks.

The rules are those of diffusers' PixArtSigmaPipeline (Apache-2.0; from DeepFloyd IF), as a table. Left out: ftfy, which
repairs text that was decoded wrongly; of it, only straight quotes, unescaped entities and NFC are here. Tags are found
by html.parser instead of BeautifulSoup.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
DASHES += "\ufe31\ufe32\ufe58\ufe63\uff0d"
MARKS = re.escape("#®•©™&@·º½¾¿¡§~)(][}{|\\/*")
FULL = {"\uff02": '"', "\uff07": "'", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'}

BEFORE = [  # links
    (r"<person>", "person"),
    (r"\b((?:https?:(?:\/{1,3}|[a-zA-Z0-9%])|" + DOMAIN + "))", ""),
    (r"\b((?:www:(?:\/{1,3}|[a-zA-Z0-9%])|" + DOMAIN + "))", ""),
]
MIDDLE = [
    (r"@[\w\d]+\b", ""),  # nicknames
    ("[\u31c0-\u31ff\u3200-\u4dff\u4e00-\u9fff]+", ""),  # Chinese, Japanese
    (f"[{DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (f"[{MARKS}]{{1,}}", " "),
    (r"\s+\.\s+", " "),
]
AFTER = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # 3x4, with a Latin or Cyrillic letter or the sign
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
]


def clean(caption: str) -> str:
    """A caption as T5 should read it, in lower case; "" stays "".

    Cleaned twice, as the pipeline does.
    """
    return _once(_once(caption))


def _once(text: str) -> str:
    text = _replaced(unquote_plus(text).strip().lower(), BEFORE)
    text = _replaced(_without_tags(text) if "<" in text or "&" in text else text, MIDDLE)
    if len(re.findall(r"[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub(r"[-_]", " ", text)
    for mark, plain in FULL.items():
        text = text.replace(mark, plain)
    text = html.unescape(html.unescape(unicodedata.normalize("NFC", text)))
    return _replaced(text, AFTER).strip()


def _replaced(text: str, rules: list[tuple[str, str]]) -> str:
    for pattern, by in rules:
        text = re.sub(pattern, by, text)
    return text


def _without_tags(text: str) -> str:
    """The text of a piece of HTML."""
    parts: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = parts.append
    parser.feed(text)
    parser.close()
    return "".join(parts)
