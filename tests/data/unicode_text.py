"""Random captions that try every corner of cleaning and splitting."""

from __future__ import annotations

import random
import sys

WHITESPACE = [chr(c) for c in range(sys.maxunicode + 1) if chr(c).isspace()]
MOJIBAKE = [
    "â€œquotesâ€\x9d",
    "cafÃ©",
    "Ã la mode",
    "voilÃ le travail",
    "â˜º smile",
    "sÃ³",
    "ÃƒÂ© twice",
    "Â© 2020 Â£5",
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚",
    "æ—¥æœ¬",
    "â€” dash",
    "l’été œuf",
    "ﬁne ﬂow",
    "ＦＵＬＬ　ｗｉｄｔｈ ﾀ",
    "\x1b[31mred\x1b[0m",
    "a\x00b\x0bc\x1fd\x7fe",
    "line\r\nbreak\rtwo\u2028three\x85four",
    "\ufeffbom",
    "\ud83d\ude00 pair",
    "\ud800 lone",
    "e\u0301 \u1100\u1161",
]
HTML = [
    "a &amp; b",
    "a & b",
    "a &amp;amp; b",
    "&lt;b&gt; x < y &amp; z",
    "AT&T;",
    "R&D",
    "&",
    "&&amp;",
    "&#39;s",
    "&#x27;S",
    "&EACUTE;",
    "&notit; &not it",
    "fish&chips",
    "&#0;",
    "&#xD800;",
    "&nbsp;x",
    "&amp\n;",
    "&a\u3000mp;",
    "&amp;#39;",
    "&#38;quot;",
    "&;",
    "& ;",
]
SPECIAL = [
    "<start_of_text>",
    "<end_of_text>",
    "<END_OF_TEXT>",
    "&lt;end_of_text&gt;",
    "<ſtart_of_text>",
    "<start_of_text",
]
# Contractions in every case, before and after letters, with the long s that matches s when case is
# ignored.
CONTRACTIONS = [
    f"{before}{quote}{tail}{after}"
    for before in ("", "it", "IT", "é", "9", "'")
    for quote in "'’ʼ"
    for tail in ("s", "S", "ſ", "t", "RE", "vE", "m", "LL", "lL", "d", "ſt", "x")
    for after in ("", "a", "9", "'s")
]
WORDS = [
    "word",
    "Two Words",
    "don't",
    "42nd",
    "x_y",
    "naïve",
    "ΣΊΣΥΦΟΣ",
    "İstanbul",
    "日本語",
    "हिन्दी",
    "👩‍👩‍👧",
    "ⅷ²½",
    "\u0345ͅ",
]


def random_text(rng: random.Random, length: int) -> str:
    """`length` pieces: characters of every plane, broken text, HTML, special tokens, words."""
    pieces: list[str] = []
    for _ in range(length):
        match rng.randrange(12):
            case 0 | 1:
                pieces.append(chr(rng.randrange(0x80)))
            case 2:
                pieces.append(chr(rng.randrange(0x80, 0x250)))
            case 3:
                pieces.append(chr(rng.randrange(0x3000)))
            case 4:
                pieces.append(chr(rng.randrange(0x10000)))
            case 5:
                pieces.append(chr(rng.randrange(0x110000)))
            case 6:
                pieces.append(rng.choice(WHITESPACE))
            case 7:
                pieces.append(rng.choice(MOJIBAKE + HTML))
            case 8:
                pieces.append(rng.choice(CONTRACTIONS))
            case 9:
                pieces.append(rng.choice("ΣσςİIıſKÅʼn'’.·&;\u0345\u00ad\u200d"))
            case 10:
                pieces.append(rng.choice(SPECIAL))
            case _:
                pieces.append(rng.choice(WORDS))
    return "".join(pieces)
