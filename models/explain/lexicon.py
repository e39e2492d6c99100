"""The words a reason may use besides titles and attributes, and what each of them claims.

Written by hand for the checker, apart from the frames: a frame with a word that is not here is refused, and a test
notices. Called by the checker, and by the open grammar for the words that claim nothing.
"""

# ruff: noqa: E501, SIM905 - word lists and their patterns read best as running text

from __future__ import annotations

import re

from models.explain.positives import Taken

ENGLISH = frozenset(
    """
    a about after again all alongside also among an and another anyone appeal appealing appreciate are arrival as aimed at attention
    back be because become before begin behind beside better both bought bring brings but by
    calm carries case change choice choices choose choosing chose chosen close combination comes common consider continue could covers
    cosy dates deliver delivers delivering different discover do does dose
    each early easy else enjoy enjoyed every explore explores extra
    fancy favourite feel few find first fit fits fitting flavour flavours follow follow-up follows for frequent frequently
    fresh from further
    get getting give given go goes going good ground
    hard has have head here hit how
    if in interest into is it its
    just
    keep keeps kind known
    like liked likewise little live lives lively look looked looking looks low
    maker makes many may maybe might moment moments mood more move
    name natural near need neighbouring new next now
    of off offer offers often on once one option options or ordered other others out
    pairing path people perhaps person pick picked picking picks plenty please popular praise praised promising
    ready recall recalls recently related returns reviews right rise round running
    safe same see seek share shares should side similar since sits so someone something soon shortly spirit spot
    stands start step still stop streak subject such suggested suggestion suggestions suit suited suits
    take tap territory thanks that the their them then theme there these thing this time title titles to today together tone too
    treads trending try turn turning two twist
    up use usual very
    viewed
    want was well well-worn went were what where which who why will with work world worth wrong
    yet you your days added off
    """.split()
)

_ENGLISH_VERBS: dict[str, Taken] = {
    "liked": "liked",
    "enjoyed": "liked",
    "loved": "liked",
    "bought": "bought",
    "ordered": "bought",
    "viewed": "viewed",
    "looked at": "viewed",
    "picked": "chosen",
    "chose": "chosen",
}
_CHINESE_VERBS: dict[str, Taken] = {"喜欢": "liked", "买过": "bought", "看过": "viewed", "选过": "chosen"}
_SAID = re.compile(
    r"\b(?:you|(?:someone|anyone|person) who)(?: also| both| once| just| recently)? ("
    + "|".join(_ENGLISH_VERBS)
    + r")\b",
    re.I,
)
_SAID_CHINESE = re.compile(
    "你(?:以前)?(" + "|".join(_CHINESE_VERBS) + ")|(" + "|".join(_CHINESE_VERBS) + ")[\ue010-\ue07f]"
)
_PERSONAL = re.compile(r"\b(?:because you|since you|as you|your)\b", re.I)

_CLAIMS: dict[str, re.Pattern[str]] = {
    "popular": re.compile(r"\b(?:popular|favourite)\b", re.I),
    "trending": re.compile(r"\b(?:trending|on the rise|getting attention|right now|at the moment|these days)\b", re.I),
    "new": re.compile(
        r"\b(?:new (?!to you)|new[.,:]|is new|something new|just in|recently added|arrival|be early|the first[:.]|fresh among)",
        re.I,
    ),
    "again": re.compile(r"\b(?:again|before|running (?:low|out)|once more)\b", re.I),
    "crowd": re.compile(r"\b(?:people|others|often|frequently|frequent|common|well-worn)\b", re.I),
    "meaning": re.compile(r"\b(?:theme|subject|ground|territory|close|near|neighbouring)\b", re.I),
    "praised": re.compile(r"\b(?:prais|review)\w*", re.I),
    "similar": re.compile(r"\b(?:similar|related)\b", re.I),
}
_CHINESE_CLAIMS: dict[str, re.Pattern[str]] = {
    "popular": re.compile("很受欢迎"),
    "trending": re.compile("流行"),
    "new": re.compile("新上架|新来"),
    "again": re.compile("以前|又需要"),
    "crowd": re.compile("很多人|不少人|常常|经常|一同|选择\ue010"),
    "praised": re.compile("评论|称赞"),
    "meaning": re.compile("主题|题材|内容|相近|接近|类似|相似"),
}
_CHINESE = (
    "因为 既然 也许 可能 或许 喜欢 欣赏 风格 气质 元素 类型 同样 也有 也是 也能 找到 延续了 保留了 带有 一样 还想 还想要 想要 想找 要 想 看过 买过 选过 "
    "体验过 之后 试试 看看 适合 推荐给 推荐 再次 出现 得到 延续 又一个 另一个 选择 都来自 来自 很多人 不少人 会选 常常 经常 下一个 一起 一同 选了 "
    "评论 称赞 受到 主题 题材 内容 接近 类似 相近 与之 以前 又需要了 最近 目前 现在 正在 流行 很受欢迎 值得 一试 新上架 新来 新上架的 新来的 不一样 换个 来点 "
    "你 会 的 而 有 和 里 在 人 被 它 这个 了 中 是 也 都 上"
).split()
_CHINESE_TEXT = re.compile(
    "(?:" + "|".join(sorted(map(re.escape, _CHINESE), key=len, reverse=True)) + r"|[\s,。?!:;、,:;?!《》])*"
)


def is_chinese(text: str) -> bool:
    """Whether a text is made of the known Chinese phrases and punctuation alone."""
    return _CHINESE_TEXT.fullmatch(text) is not None


def said_verbs(rest: str, language: str) -> set[Taken]:
    """Return what the sentence says that the user did."""
    if language == "zh":
        return {_CHINESE_VERBS[a or b] for a, b in _SAID_CHINESE.findall(rest) if f"会{a}" not in rest or not a}
    return {_ENGLISH_VERBS[v.casefold()] for v in _SAID.findall(rest)}


def says_personal(rest: str, language: str) -> bool:
    """Whether the sentence leans on something the user did."""
    return language != "zh" and _PERSONAL.search(rest) is not None


def claims_something(word: str) -> bool:
    """Whether an English word may be part of a claim or of what somebody did, so that it must be backed."""
    verbs = {part for verb in _ENGLISH_VERBS for part in verb.split()}
    nouns = {"you", "your", "someone", "anyone", "person", "who", "yet", "off", "want", "need", "time", "maker", "name"}
    loaded = (
        verbs
        | nouns
        | set(
            "new first early fresh once rise attention right moment days recently added known together dates all every many "
            "better wrong hard low running went was were live lives world safe two pairing combination".split()
        )
    )
    return word in loaded or bool(claims_of(word, "en")) or says_personal(f"{word} you", "en")


def says_praise(rest: str, language: str) -> bool:
    """Whether the sentence says that reviews praise something."""
    return "praised" in claims_of(rest, language)


def claims_of(rest: str, language: str) -> list[str]:
    """Return the claims that the words of a sentence make, each to be backed by the record."""
    table = _CHINESE_CLAIMS if language == "zh" else _CLAIMS
    return [name for name, pattern in table.items() if pattern.search(rest)]
