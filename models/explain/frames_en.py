"""English frames; see `models.explain.frames` for what slots and choices mean.

Every reading of every frame must be good English, since a small model chooses between them by ear. Attributes always
stand before a noun ("its crime and drama side"), because a catalog's labels are not all nouns. What the user did is
only ever said through `{verb}`, so that no frame can claim a liking that the record does not hold.
"""

# ruff: noqa: E501 - one sentence, one line: a frame is read as a whole

from models.explain.positives import Attribute, Taken

AND = " and "
LIST = ", "
VERBS: dict[Taken, tuple[str, ...]] = {
    "liked": ("liked", "enjoyed"),
    "bought": ("bought",),
    "viewed": ("looked at", "viewed"),
    "chosen": ("picked", "chose"),
}

FRAMES: dict[str, tuple[str, ...]] = {
    "shared": (
        "[Because|Since|As|Given that] you {verb} {liked}, you [may|might|could] [enjoy|like|appreciate] the {shared} [side|mood|feel|streak|flavour|spirit] of {item}[|, so give it a try|, so have a look].",
        "You {verb} {liked}, so {item}, [another|one more|a further|yet another] {shared} [pick|choice|title|option|suggestion], [may|might|could] [suit you|be for you|appeal to you].",
        "{item} [shares|keeps|carries on|recalls] the {shared} [mood|feel|flavour|spirit|side|tone] of {liked}[|, which you {verb}][|, so give it a try].",
        "[In the mood for|Up for|Looking for|Ready for] [another|one more] {shared} [pick|choice|title|option|suggestion] after {liked}? [Try {item}|Consider {item}|Give {item} a try|Take a look at {item}].",
        "Like {liked}, {item} [offers|brings|delivers] [plenty of|a good dose of|its share of] {shared} [appeal|flavour|moments][|, so it may suit you].",
        "A [good|natural|fitting|promising] [follow-up|next pick|next step] after {liked} [could|may|might] be {item}, with [the same|a similar] {shared} [feel|mood|flavour|spirit|tone|side].",
        "For someone who {verb} {liked}, {item} is [a natural|an easy|a promising|a fitting] {shared} [pick|choice|next step].",
        "{item} [goes|fits|sits] well [beside|alongside|with] {liked}, [thanks to|because of|given] its {shared} [side|streak|feel|mood|flavour|spirit].",
        "The {shared} [mood|side|feel|spirit|flavour|tone] of {liked} [returns|comes back|lives on] in {item}[|, so have a look|, so give it a try|, which may suit you].",
        "{one} and {item} [have|share] [that|the same] {shared} [side|mood|feel|spirit|flavour|tone][|, and you {verb} the first one].",
        "If {one} [was right for you|hit the spot|suited you], {item} [may|might|could] [do the same|work as well|be next] with its {shared} [side|mood|feel|flavour|spirit|tone].",
        "After {liked}, [how about|maybe try|what about] [another|one more] {shared} [pick|choice|title|option|suggestion] [like|such as] {item}?",
        "[Picked|Chosen|Suggested] for you [because|since|as] {item} and {one} are both {shared} [picks|titles|choices|options|suggestions].",
        "[With|Given] its {shared} [side|mood|feel|streak|flavour|spirit], {item} [should|may|might] [please|interest|suit] [someone|a person|anyone] who {verb} {liked}.",
        "[Another|One more|A further] {shared} [pick|choice|title|option] for [someone|a person] who {verb} {liked}.",
        "[Since|Because|As] you {verb} {liked}, here is [another|one more] {shared} [pick|choice|title|option].",
    ),
    "maker": (
        "[Because|Since|As|Given that] you {verb} {liked}, [here is|you might like|consider] [more|something else] from {maker}.",
        "{item} [also comes|comes, too,|is likewise] from {maker}, [just like|the same as|as does] {liked}.",
        "[Another|One more] {maker} [pick|choice|title|option|suggestion]: {item} [goes|fits|sits] well [with|beside|alongside] {liked}.",
        "You {verb} {liked}, and {item} [is also|is likewise] from {maker}.",
        "[More|Something else] from {maker}, the [name|maker] behind {liked}[|: {item}].",
        "Like {liked}, {item} is from {maker}[|, so it may suit you|, so have a look].",
        "If {one} [suited you|was right for you], [try|consider] {item}, [also|likewise] from {maker}.",
        "{one} and {item} are both from {maker}[|, and you {verb} the first one].",
        "[For|Aimed at] someone who {verb} {liked}: [another|one more] [pick|choice] from {maker}.",
    ),
    "co_visited": (
        "{item} [often|frequently] [comes|follows] [right|soon|shortly] after {one}[|, which you {verb}].",
        "[Because|Since|As|Given that] you {verb} {one}, you [may|might|could] [want|like] {item}, which [often|frequently] comes next.",
        "[Many|Plenty of] people go from {one} to {item}[|, so you might too|, so it may suit you|, so have a look].",
        "{item} is a [frequent|common|well-worn] next [step|pick|choice] after {one}[|, which you {verb}].",
        "You {verb} {one}; [many|plenty of] people [go on to|continue with|move on to] {item} [next|from there|after that].",
        "[People|Others] who [pick|choose|go for] {one} [often|frequently] [pick|choose|go for] {item} [too|as well|next].",
        "{one} and {item} [often go|frequently go|are often picked|are frequently picked|are often chosen] together[|, so give it a try|, so have a look].",
        "After {one}, {item} is where [many|plenty of] people [go|turn|head] next[|, so give it a try].",
        "[A common|A frequent] next [step|pick|choice] for people who [picked|chose|went for] {one}.",
        "[Next stop|Next up] after {one}: {item}, a [frequent|common] [pairing|combination].",
    ),
    "meaning": (
        "{item} is close in [theme|spirit|subject|tone] to {liked}[|, which you {verb}][|, so give it a try].",
        "[Because|Since|As|Given that] you {verb} {liked}, you [may|might|could] [like|enjoy|appreciate|want to try] {item}, which is close in [theme|spirit|subject|tone].",
        "In [theme|spirit|subject|tone], {item} is close to {liked}[|, so it may suit you|, so have a look].",
        "You {verb} {liked}, and {item} [covers|explores|treads] [similar|related|neighbouring] ground.",
        "{item} [covers|explores] [ground|territory] [similar|close|related] to that of {liked}[|, so it may suit you].",
        "If {one} [suited you|was right for you|hit the spot], {item} is [similar|close] in [theme|spirit|subject|tone].",
        "[Similar|Close] in [theme|spirit|subject|tone] to {liked}[|, which you {verb}|, so have a look].",
        "[Looking for|In the mood for|Up for] something [close|similar] to {liked}? [Try {item}|Consider {item}|Give {item} a try].",
        "For someone who {verb} {liked}, {item} is [similar|close] in [theme|spirit|subject|tone].",
    ),
    "praised": (
        "Reviews praise the {praised} of {item}[|, so have a look|, so give it a try].",
        "{item} is praised in reviews for its {praised}[|, so have a look|, so give it a try].",
        "Praised in reviews for its {praised}[|: {item}].",
        "[Have|Take] a look at {item}, [praised in reviews|which reviews praise] for its {praised}.",
        "[One|Something] to [explore|consider|try]: {item}, [praised in reviews|which reviews praise] for its {praised}.",
        "Reviews of {item} praise its {praised}[|, so have a look|, so give it a try].",
    ),
    "praised_too": (
        "Like {one}, {item} is praised in reviews for its {praised}.",
        "Reviews praise the {praised} of both {one} and {item}[|, and you {verb} the first one].",
        "{one} and {item} are both praised in reviews for [the|their] {praised}.",
        "[Because|Since|As|Given that] you {verb} {one}, [try|consider] {item}, which reviews also praise for its {praised}.",
        "You {verb} {one}, which is praised in reviews for its {praised}, just like {item}.",
    ),
    "again": (
        "[Time|Ready] for [more|another round]? You bought {item} before.",
        "You bought {item} before[|, so you may want it again|, so you might need it again].",
        "{item} is [something|one thing] you bought before[|, in case you need it again].",
        "[In case you need|If you want] {item} again: you bought it before.",
        "[Need|Want] {item} [again|once more]? You bought it before.",
        "You bought this before[|, so you may want it again|, so you might need it again].",
        "[Here again|Back again|Once more]: {item}, which you bought before.",
        "[Running low|Running out]? You bought {item} before.",
    ),
    "trending": (
        "{item} is [trending|getting attention|on the rise] [now|right now|at the moment][|, so have a look].",
        "[Trending|On the rise] [now|right now|at the moment][|: {item}].",
        "[Many|Plenty of] people are [turning to|picking|choosing] {item} [right now|at the moment|these days].",
        "[Right now|At the moment|These days], {item} is [trending|on the rise|getting attention].",
        "[See|Find out|Discover] why {item} is [trending|on the rise] [now|right now|at the moment].",
        "{item}, [with its|for its] {traits} [side|mood|appeal], is [trending|on the rise] [now|right now|at the moment].",
        "[A|One more] trending [pick|choice|title|option|suggestion] with {traits} [appeal|flavour][|: {item}].",
        "[Trending|On the rise] among {traits} [picks|choices|titles][|: {item}].",
    ),
    "popular": (
        "{item} is a popular [pick|choice|title|option|suggestion][|, so have a look|, so give it a try].",
        "A popular [pick|choice|title|option|suggestion] with {traits} [appeal|flavour|moments][|: {item}].",
        "[Popular|A favourite] with [many|plenty of] people[|: {item}].",
        "[Many|Plenty of] people [pick|choose|go for] {item}[|, a {traits} favourite].",
        "{item} is [popular|a favourite] among {traits} [picks|choices|titles].",
        "[Start|Begin] with a [popular pick|favourite]: {item}[|, known for its {traits} side].",
        "[Looking for|In the mood for|Up for] a popular {traits} [pick|choice|title|option|suggestion]? [Try {item}|Consider {item}|Give {item} a try].",
        "[Hard to go wrong|A safe start]: {item} is [popular|a favourite] with [many|plenty of] people.",
    ),
    "new": (
        "[New|Just in|Recently added][|: {item}].",
        "{item} is [new|a new arrival][|, so have a look|, so give it a try].",
        "A new [pick|choice|title|arrival] with {traits} [appeal|flavour][|: {item}].",
        "[Be among the first|Be early]: {item} is [new|a new arrival].",
        "[Looking for|In the mood for|Up for] something new? [Try {item}|Consider {item}|Give {item} a try].",
        "{item} is a new {traits} [pick|choice|title|arrival].",
        "[Fresh|New] among {traits} [picks|choices|titles][|: {item}].",
        "[Have|Take] a look at {item}, [a new arrival|which is new].",
    ),
    "traits": (
        "{item} [offers|brings|delivers] [plenty of|a good dose of|its share of] {traits} [appeal|flavour|moments].",
        "[Looking for|In the mood for|Up for|Ready for] a {plain} [pick|choice|title|option|suggestion]? [Try {item}|Consider {item}|Give {item} a try].",
        "[Something|One] for a {plain} mood[|: {item}].",
        "{item} [stands|is] among the {traits} [picks|choices|titles|options][| to explore].",
        "[Explore|Discover|Try out] the {traits} side of {item}.",
        "[With|Given] its {traits} [side|mood|feel|streak|flavour|spirit], {item} is [worth a look|worth a try|one to consider].",
        "[One|Something] to [explore|consider|try]: {item}, with its {traits} [side|mood|feel].",
        "[Have|Take] a look at {item} for its {traits} [side|mood|feel|streak|flavour|spirit].",
        "{item} dates from {year} and [has|brings] {traits} [appeal|flavour].",
        "[Something|One] with {traits} [appeal|flavour] to [explore|consider|try].",
    ),
    "nothing": (
        "Something [different|else] to [explore|try|consider].",
        "[Something|One] [off the usual path|a little different] to [explore|try|consider].",
        "[Have|Take] a look at something [different|else].",
        "[Here is|Here comes] something [different|else] to [explore|try|consider].",
        "[Fancy|How about] something [different|else]?",
        "[Worth|Perhaps worth] a look, for a change.",
        "[A different|Another] [option|choice] to [explore|try|consider].",
        "[Explore|Try|Consider] something [different|else] today.",
    ),
}


def speak(attribute: Attribute) -> str:
    """Return an attribute as it stands inside a sentence: genres in lower case, names as they are."""
    if attribute.kind != "genre":
        return attribute.text
    return " ".join(w.lower() if w[1:] == w[1:].lower() or "-" in w else w for w in attribute.text.split())


def is_plain(attribute: str) -> bool:
    """Whether the word may stand after "a"."""
    return attribute[:1].casefold() not in "aeiouh8" and attribute[:1].isalpha()
