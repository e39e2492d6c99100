"""Chinese frames; see `models.explain.frames` for what slots and choices mean.

Titles stand in 《》. Attributes keep the words of the catalog.
"""

from models.explain.positives import Attribute, Taken

AND = "和"
LIST = "、"
VERBS: dict[Taken, tuple[str, ...]] = {
    "liked": ("喜欢",),
    "bought": ("买过",),
    "viewed": ("看过",),
    "chosen": ("选过",),
}

FRAMES: dict[str, tuple[str, ...]] = {
    "shared": (
        "[因为|既然]你{verb}{liked},[也许|可能|或许]会[喜欢|欣赏]{item}的{shared}[风格|气质|元素]。",
        "你{verb}{liked},而{item}[同样|也]有{shared}[风格|气质|元素]。",
        "{item}[延续了|保留了|带有]{liked}的{shared}[风格|气质|元素]。",
        "和{liked}一样,{item}[也有|同样有|带有]{shared}[风格|气质|元素]。",
        "[还想|想]要{shared}[风格|类型]?{liked}之后,[试试|看看]{item}。",
        "[适合|推荐给]{verb}{liked}的人:{item},[同样|也]是{shared}[风格|类型]。",
        "{liked}的{shared}[风格|气质|元素]在{item}里[再次出现|得到延续|也能找到]。",
        "[又一个|另一个]{shared}[选择|推荐],[适合|推荐给]{verb}{liked}的人。",
    ),
    "maker": (
        "{item}和{one}[都来自|同样来自]{maker}。",
        "[因为|既然]你{verb}{liked},[试试|看看]同样来自{maker}的{item}。",
        "和{liked}一样,{item}也来自{maker}。",
        "[又一个|另一个]来自{maker}的[选择|推荐]:{item}。",
        "你{verb}{liked},{item}也来自{maker}。",
        "[又一个|另一个]来自{maker}的[选择|推荐]。",
    ),
    "co_visited": (
        "[很多人|不少人]在{one}之后[选择|会选]{item}。",
        "[因为|既然]你{verb}{one},[试试|看看]{item},它[常常|经常]是下一个选择。",
        "{item}[常常|经常]和{one}[一起|一同]被选择。",
        "[选择|选了]{one}的人[常常|经常]也会选择{item}。",
        "{one}之后,[很多人|不少人]的下一个选择是{item}。",
        "[很多人|不少人]在{one}之后的选择。",
    ),
    "meaning": (
        "{item}在[主题|题材|内容]上[接近|类似]{liked}。",
        "[因为|既然]你{verb}{liked},[也许|可能|或许]会喜欢[主题|题材]相近的{item}。",
        "[想找|还想要]和{liked}[相近|类似]的?[试试|看看]{item}。",
        "你{verb}{liked},{item}的[主题|题材|内容]与之[相近|接近]。",
        "在[主题|题材|内容]上[接近|类似]{liked}。",
    ),
    "praised": (
        "评论称赞{item}的{praised}[|,值得一试|,值得看看]。",
        "{item}的{praised}受到评论称赞[|,值得一试|,值得看看]。",
        "[试试|看看]{item},评论称赞它的{praised}。",
        "[试试|看看]评论称赞的{praised}[|:{item}]。",
    ),
    "praised_too": (
        "和{one}一样,{item}的{praised}也受到评论称赞。",
        "评论称赞{one}和{item}的{praised}。",
        "[因为|既然]你{verb}{one},[试试|看看]{item},评论也称赞它的{praised}。",
    ),
    "again": ("你以前买过{item}[|,也许又需要了]。", "你以前买过[它|这个][|,也许又需要了]。"),
    "trending": ("{item}[最近|目前|现在]正在流行。", "[最近|目前|现在]正在流行[|:{item}]。"),
    "popular": ("{item}很受欢迎[|,值得一试|,值得看看]。", "[很多人|不少人]的选择[|:{item}]。"),
    "new": ("{item}是[新上架的|新来的][|,值得一试]。", "[新上架|新来的][|:{item}]。"),
    "traits": (
        "{item}有{traits}[风格|气质|元素][|,值得一试|,值得看看]。",
        "[想找|想要]{traits}[风格|类型]?[试试|看看]{item}。",
        "[带有|有]{traits}[风格|气质|元素]的[选择|推荐]。",
    ),
    "nothing": ("[试试|看看]不一样的[选择|推荐]。", "[换个|来点]不一样的[选择|推荐]。", "[也许|或许]值得[一试|看看]。"),
}


def speak(attribute: Attribute) -> str:
    """Return an attribute as it stands inside a sentence."""
    return attribute.text


def is_plain(attribute: str) -> bool:
    """Whether the word may stand after an article; Chinese has none."""
    return True
