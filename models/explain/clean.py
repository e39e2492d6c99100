"""Text written by strangers, made safe to show to a language model and to quote in a sentence.

Titles and attribute values come from importers and item updates: anyone may have written them. `clean_text`
removes what is invisible or structural; `is_quotable` says whether the rest may appear in a reason at all.
Knows nothing of catalogs or prompts; called when evidence is built and by the checker.
"""

import re
import unicodedata
from functools import lru_cache

TITLE_CHARS = 80
"""Longest title that is quoted; longer ones are cut at a word and end in three dots."""

LABEL_CHARS = 40

_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_SPECIAL_TOKEN = re.compile(
    r"<\|+|\|+>|<</?|>>|<(/?[A-Za-z_!][^<>]{0,60})>|\[(/?(?:INST|SYS|SYSTEM|UNK|PAD|CLS|SEP|MASK|BOS|EOS))\]", re.I
)
_COMBINING_RUN = 3
_TOP_LEVEL = (
    r"(?:com|net|org|io|ai|co|info|biz|ru|cn|de|fr|uk|xyz|top|app|dev|me|tv|ly|gg|link|site|online|shop|example|test)"
)
_LINK = re.compile(
    r"(?:https?|ftp|javascript|data|file|mailto)\s*:|//\w|www\.|\S+@\S+\.\w|\b[\w-]+\.(?:[\w-]+\.)*"
    + _TOP_LEVEL
    + r"(?:/|\b(?!\w))|\bhxxps?|\bdot\s+(?:com|net|org)\b|\d{1,3}(?:\.\d{1,3}){3}",
    re.I,
)
_MARKUP = re.compile(r"[<>{}`|\\^~]|\]\s*\(|!\[|\*\*|__|^#{1,6}\s|&#?\w+;|::=|\$\(|--\s|/\*|={3,}|-{3,}|\"{3}|#{2,}")
_ROLE = re.compile(r"\b(?:system|assistant|user|human|developer|tool|im_start|im_end|endoftext|inst)\b\s*[:>\]]", re.I)
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|skip)\b.{0,40}\b(?:instruction|rule|prompt|previous|above|prior|everything|"
    r"guideline|context|facts?|grammar|safety)"
    r"|\b(?:system|initial|hidden|secret|developer)\s+(?:prompt|message|instruction)|\byou\s+are\s+now\b|\byou\s+must\b"
    r"|\b(?:pretend|act|behave)\s+(?:to\s+be|as|like)\s+(?:an?|the|if)\b.{0,30}\b(?:ai|assistant|model|admin|dan|root|unrestricted)"
    r"|\b(?:reveal|print|output|repeat|show|leak|send|tell|give|list|exfiltrate|write|say|reply|respond|answer)\b.{0,40}"
    r"\b(?:prompt|instructions?|password|secrets?|api\s*key|tokens?|user\s*ids?|history|credentials|credit\s+card|email|only\s+with|with\s+only|exactly|verbatim)"
    r"|\bnew\s+(?:instructions?|task|rules?)\b|\bend\s+of\s+(?:prompt|instructions?|data|input)\b|\bjailbreak|\bdeveloper\s+mode\b|\bdo\s+anything\s+now\b"
    r"|\b(?:click|visit|go\s+to|call|buy)\s+(?:here|now|this\s+link|the\s+link|our)\b|\bim_(?:start|end)\b|\bendoftext\b"
    r"|\bignor(?:ez|iere?n?|a|ar|are|e)\b.{0,40}\b(?:instru|anweis|istruz|regl|r[èe]gles?|anterior|precedent|vorherig)"
    r"|忽略|无视|無視して|以前の指示|系统提示|系統提示|이전\s*지시|무시하|игнорир|инструкци|забудь|تجاهل|التعليمات|अनदेखा|निर्देश|önceki\s+talimat|bỏ\s+qua",
    re.I,
)
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")


def clean_text(text: str, *, limit: int = TITLE_CHARS) -> str:
    """Return `text` on one line, without invisible characters or special-token brackets, at most `limit` characters.

    NFKC first (so that look-alike brackets are seen for what they are); control, bidirectional and zero-width
    characters are removed, runs of combining marks cut, quotes kept. Cleaning a clean text changes nothing.
    """
    out = text[: limit * 16]
    for _ in range(8):  # breaking one token may form another: repeat until nothing changes
        before, out = out, _SPECIAL_TOKEN.sub(_inner, _visible(out))
        if out == before:
            break
    else:
        out = _visible(re.sub(r"[<>|\[\]]+", " ", out))
    return _cut(out, limit)


def is_quotable(text: str) -> bool:
    """Whether a cleaned text may be quoted: no link, markup, role marker or instruction, and something to read."""
    if not _LETTER_OR_DIGIT.search(text):
        return False
    return not any(p.search(text) for p in (_LINK, _MARKUP, _ROLE, _ORDER))


@lru_cache(maxsize=32_768)  # the same titles are cited again and again, and judging one takes some 50 µs
def quotable_text(text: str, *, limit: int = TITLE_CHARS) -> str:
    """Return the cleaned text, or "" when it must not be quoted (see `is_quotable`)."""
    # A hostile tail must not hide behind the cut, nor markup behind the cleaning: the whole text is judged.
    if len(text) > 4000 or not is_quotable(_visible(text)) or not is_quotable(clean_text(text, limit=4000)):
        return ""
    return clean_text(text, limit=limit)


def _inner(match: re.Match[str]) -> str:
    return f" {match.group(1) or match.group(2) or ''} "


def _visible(text: str) -> str:
    out: list[str] = []
    marks = 0
    for char in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if char.isspace() or category in ("Cc", "Zl", "Zp"):
            out.append(" ")
        elif category not in _INVISIBLE and marks <= _COMBINING_RUN:
            out.append(char)
    return " ".join(unicodedata.normalize("NFKC", "".join(out)).split())


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    head = text[: limit - 3]
    at = head.rfind(" ")
    # Three dots, not an ellipsis: NFKC would turn it into three, and a cleaned text must stay as it is.
    return (head[:at] if at > limit // 2 else head).rstrip(" ,.;:-–—") + "..."
