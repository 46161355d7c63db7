"""Caption cleaning: the reference's result exactly, without ftfy where ftfy changes nothing.

The reference cleans with ftfy, then twice `html.unescape`, then `str.strip`, then one of three
finishes. ftfy costs more than everything else a caption goes through, and most captions are plain
ASCII on which it has nothing to do; `unmangle` proves that from the text before it skips it.
"""

from __future__ import annotations

import html
import re
import string
import unicodedata
from typing import Literal, cast, get_args

import ftfy
from ftfy import chardata
from ftfy.badness import is_bad

from fastclip.errors import UserError

Clean = Literal["lower", "whitespace", "canonicalize"]

# A longer caption is cleaned from its beginning only as far as the tokens asked for need it.
LONG_CAPTION = 16_384
# ftfy's own bound on what it looks at in one piece, in characters.
_SEGMENT = ftfy.TextFixerConfig().max_decode_length
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Neither ftfy nor html.unescape matches an ampersand that is followed by one of these, or by
# nothing.
_LIVE_AMPERSAND = re.compile("&[^\t\n\f <&;]")


def _one_of(code_points: set[int]) -> re.Pattern[str]:
    return re.compile("[" + "".join(re.escape(chr(c)) for c in sorted(code_points)) + "]")


# Every character that a fixer of ftfy maps or looks for, apart from its mojibake heuristic and
# from NFC. A line break is among them because ftfy treats each line by itself, and we judge the
# caption as one.
_FIXED_BY_FTFY = _one_of(
    {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS}
    | {0x02BC, *range(0x2018, 0x2020)}  # curly quotes
    | {*range(0x80, 0xA0), 0x0A, 0x0D, 0x1B, 0x2028, 0x2029}  # C1 controls, line breaks, escapes
    | {*range(0xD800, 0xE000)}  # surrogates
)


def check_clean(name: str) -> Clean:
    """`name` as a kind of cleaning, or UserError."""
    if name in get_args(Clean):
        return cast(Clean, name)
    raise UserError(
        f"tokenizer_kwargs: clean {name!r} is unknown: choose {', '.join(get_args(Clean))}"
    )


def unmangle(text: str) -> str:
    """`text` after ftfy and two rounds of `html.unescape`; whitespace stays as it is.

    Raises TypeError for anything but a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"a caption must be a str, got {type(text).__name__}")
    if "&" not in text or _LIVE_AMPERSAND.search(text) is None:
        # Printable ASCII: no control character, line break, escape or quote that a fixer looks for.
        if text.isascii():
            if text.isprintable():
                return text
        elif (
            len(text) <= _SEGMENT
            and _FIXED_BY_FTFY.search(text) is None
            and unicodedata.is_normalized("NFC", text)
            and not is_bad(text)
        ):
            return text
    text = ftfy.fix_text(text)
    return html.unescape(html.unescape(text)) if "&" in text else text


def _finish(text: str, clean: Clean) -> list[str]:
    if clean == "canonicalize":
        text = text.replace("_", " ").translate(_PUNCTUATION)
    # Lower-casing before the split is the same as after it: the only rule that looks at neighbours
    # (a final sigma) stops at whitespace, and no letter's lower case is whitespace.
    return text.split() if clean == "whitespace" else text.lower().split()


def cleaned_words(text: str, clean: Clean) -> list[str]:
    """The words of the cleaned caption: what whitespace separates, none of them empty."""
    return _finish(unmangle(text), clean)


def clean_caption(text: str, clean: Clean) -> str:
    """The cleaned caption, as the reference's `get_clean_fn(clean)` returns it."""
    return " ".join(cleaned_words(text, clean))


def opening_words(text: str, clean: Clean, length: int = LONG_CAPTION) -> list[str]:
    """The first words of the cleaned caption, from about `length` characters at its beginning.

    A true prefix of `cleaned_words(text, clean)`. ftfy works line by line (or million by million),
    what it does to a piece depends on earlier pieces only, so it may stop after any piece; and no
    HTML entity, no token and no lower-casing rule reaches across a space, so the last, perhaps
    broken, word is dropped with what it touches.
    """
    end = 0
    while end < min(length, len(text)):
        line_end = text.find("\n", end) + 1 or len(text)
        end = min(line_end, end + _SEGMENT)
    if end == len(text):
        return cleaned_words(text, clean)
    fixed = ftfy.fix_text(text[:end])
    fixed = fixed[: max(fixed.rfind(" "), fixed.rfind("\n"), 0)]
    return _finish(html.unescape(html.unescape(fixed)), clean)
