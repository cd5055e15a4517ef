"""The texts of the example model: two registers written by a small probabilistic grammar.

* ``stories``: a hero, a pet and a friend, one of four plots, and names, pronouns, objects and
  places that stay the same throughout a document;
* ``inventory``: warehouse sheets of terse records, with a zone and a clerk that stay the same
  throughout a sheet and an item name that follows from the item code.

All words and sentences were written for this project.  ``derivation`` explains the notation and
why the probability of every document is known exactly.  Pure standard library, and the same seed
gives the same documents on every platform.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from derivation import Document, Grammar, Stage, Table, Template


def _words(listing: str) -> dict[str, float]:
    """Turn ``"a | b | c"`` into a table in which earlier words are somewhat more frequent.

    Unequal frequencies, falling like 1/(rank + 6), because a real vocabulary has them too.
    """
    return {word.strip(): 1.0 / (rank + 6) for rank, word in enumerate(listing.split("|"))}


def _stage(*templates: str | Template, prob: float = 1.0) -> Stage:
    return Stage(tuple(Template(t) if isinstance(t, str) else t for t in templates), prob)


# ---------------------------------------------------------------------------------------------
# Register one: stories
# ---------------------------------------------------------------------------------------------

_GIRLS = "Mia | Lily | Nora | Ruth | Zoe | Ella | Jane | Poppy"
_BOYS = "Tom | Ben | Sam | Leo | Max | Finn | Hugo | Jack"

_STORY_TABLES: dict[str, Table] = {
    "ROLE": {"girl": 1.0, "boy": 1.0},
    "NAME|girl": _words(_GIRLS),
    "NAME|boy": _words(_BOYS),
    "NAME": {**_words(_GIRLS), **_words(_BOYS)},
    "TRAIT": _words("little | kind | brave | shy | clever | funny | gentle | merry | clumsy | polite"),
    "HOME": _words(
        "in a small house | near the sea | on a hill | by the river | "
        "in a quiet town | at a mill | near a forest | on a farm"
    ),
    "SIZE": _words("small | fat | fluffy | spotted | sleepy | grey | lazy | tame"),
    "PET": _words("dog | cat | rabbit | duck | goat | pony"),
    "PET_NAME": _words("Patch | Biscuit | Dot | Socks | Button | Ginger | Rusty | Pip"),
    "PET_ACT|dog": _words("barked | wagged its tail | dug a hole"),
    "PET_ACT|cat": _words("purred | licked its paws | chased a leaf"),
    "PET_ACT|rabbit": _words("hopped around | twitched its nose | hid in the grass"),
    "PET_ACT|duck": _words("quacked | flapped its wings | splashed in a puddle"),
    "PET_ACT|goat": _words("jumped up and down | shook its horns | chewed on a twig"),
    "PET_ACT|pony": _words("trotted in a circle | swished its tail | stamped a foot"),
    "PET_FOOD|dog": _words("a bone | some meat"),
    "PET_FOOD|cat": _words("a fish | some milk"),
    "PET_FOOD|rabbit": _words("a carrot | some clover"),
    "PET_FOOD|duck": _words("some bread | a few seeds"),
    "PET_FOOD|goat": _words("a turnip | some leaves"),
    "PET_FOOD|pony": _words("some oats | a handful of hay"),
    "WEATHER": _words("sunny | windy | cold | warm | cloudy | rainy | foggy | quiet"),
    "TIME": _words("morning | afternoon | day"),
    "PLACE": _words("park | beach | farm | forest | market | garden | school | library"),
    "SPOT|park": _words("under the bench | behind the big tree | next to the swings"),
    "SPOT|beach": _words("near the rocks | in the sand | beside the old boat"),
    "SPOT|farm": _words("in the barn | behind the tractor | near the gate"),
    "SPOT|forest": _words("under the ferns | beside a stream | on a mossy log"),
    "SPOT|market": _words("under a table | behind the flower stall | near the fountain"),
    "SPOT|garden": _words("among the roses | behind the shed | beside the pond"),
    "SPOT|school": _words("on the steps | near the fence | under the window"),
    "SPOT|library": _words("between the shelves | under a desk | behind a big chair"),
    "WORKER|park": _words("keeper | jogger"),
    "WORKER|beach": _words("fisherman | swimmer"),
    "WORKER|farm": _words("farmer | milkmaid"),
    "WORKER|forest": _words("hunter | woodcutter"),
    "WORKER|market": _words("baker | butcher"),
    "WORKER|garden": _words("gardener | painter"),
    "WORKER|school": _words("teacher | cook"),
    "WORKER|library": _words("librarian | reader"),
    "COLOUR": _words("red | blue | green | yellow | white | purple | brown | silver"),
    "OBJECT": _words("ball | kite | hat | drum | book | scarf | lamp | toy train | cup | bell"),
    "SAD": _words("sad | worried | lonely | upset | tired | gloomy | cross"),
    "SAD_ACT": _words(
        "began to cry | sat down | called for help | could not smile | kicked a stone | looked at the ground"
    ),
    "HAPPY": _words("happy | proud | glad | cheerful | pleased | relieved | calm"),
    "GLAD_ACT": _words("laughed | danced | sang a song | clapped | jumped for joy | cheered | smiled"),
    "SNACK": _words("apples | cookies | plums | cherries | buns | nuts"),
    "NUMBER": _words("two | three | four | five | six | ten"),
    "BAG": _words("bag | basket | pocket | box"),
    "THING": _words("tower | bridge | castle | raft | fort"),
    "WORKER_ACT": _words("was kind | was very nice | waved"),
    "STUFF": _words("sticks | stones | mud | old boards | ropes"),
    "CAUSE": _words("with a crash | in the wind | after a while | before lunch"),
    "SUPPER": _words("soup | pancakes | noodles | potatoes | pie | rice | fish | beans"),
}

_OPENING = _stage(
    Template("Once there was a {TRAIT} {role=ROLE} named {hero=NAME|role}.", weight=3.0),
    Template("A {TRAIT} {role=ROLE} named {hero=NAME|role} lived {HOME}.", "away", weight=2.0),
    Template("Long ago, a {role=ROLE} named {hero=NAME|role} lived {HOME}.", "away"),
)
_HOUSEHOLD = _stage(
    " {He} lived {HOME} with {his} {pet=PET} {petname=PET_NAME}.",
    " {hero} had a {SIZE} {pet=PET} called {petname=PET_NAME}.",
)
_PET = _stage(
    " {He} had a {SIZE} {pet=PET} called {petname=PET_NAME}.",
    " {hero} loved {his} {SIZE} {pet=PET} {petname=PET_NAME}.",
)
_OUTING = _stage(
    " One {WEATHER} {TIME}, {hero} went to the {place=PLACE}.",
    " On a {WEATHER} {TIME}, {hero} and {petname} walked to the {place=PLACE}.",
    " It was a {WEATHER} {TIME}, so {he} took {petname} to the {place=PLACE}.",
)
_PLOT = _stage(
    Template(" Soon {he} saw that {his} {colour=COLOUR} {obj=OBJECT} was gone.", "lost"),
    Template(" But {he} could not find {his} {colour=COLOUR} {obj=OBJECT}.", "lost"),
    Template(" There {he} found a {colour=COLOUR} {obj=OBJECT} {SPOT|place}.", "found"),
    Template(" {hero} saw a {colour=COLOUR} {obj=OBJECT} {SPOT|place}.", "found"),
    Template(" {He} had {NUMBER} {snack=SNACK} in {his} {BAG}.", "share", 2.0),
    Template(" {He} wanted to build a {thing=THING} {SPOT|place}.", "build"),
    Template(' "Let us make a {thing=THING} here," {he} said to {petname}.', "build"),
)
_STORY_PLANS: dict[str, tuple[Stage, ...]] = {
    "story": (_OPENING, _HOUSEHOLD, _OUTING, _PLOT),
    "away": (_PET, _OUTING, _PLOT),
    "lost": (
        _stage(
            " {He} felt {SAD} and {SAD_ACT}.",
            " {hero} was so {SAD} that {he} {SAD_ACT}.",
        ),
        _stage(
            " Then {friend=NAME-hero} came along and asked what was wrong.",
            " {His} friend {friend=NAME-hero} wanted to help.",
            " Just then {friend=NAME-hero} walked by with a {WORKER|place}.",
        ),
        _stage(
            ' "Do not worry, we will find your {obj}," said {friend}.',
            ' "Where did you see it last?" asked {friend}.',
            prob=0.8,
        ),
        _stage(" They looked {spot=SPOT|place}, but the {obj} was not there.", prob=0.6),
        _stage(" {petname} {PET_ACT|pet} and ran ahead.", prob=0.4),
        Stage(
            (
                Template(" At last {hero} found the {colour} {obj} {SPOT|place-spot}.", "end"),
                Template(" At last {friend} saw the {obj} {SPOT|place-spot}.", "end"),
                Template(" At last {petname} brought the {colour} {obj} back.", "end"),
            )
        ),
    ),
    "found": (
        _stage(
            " {He} did not know whose {obj} it was.",
            ' "Who has lost a {obj}?" asked {hero}.',
        ),
        _stage(" {petname} looked at it and {PET_ACT|pet}.", prob=0.5),
        _stage(" The {worker=WORKER|place} did not know, but {WORKER_ACT}.", prob=0.5),
        _stage(
            " Then {friend=NAME-hero} came, looking {SAD}.",
            " After a while {he} met {friend=NAME-hero}, who was {SAD}.",
        ),
        _stage(' "That is my {colour} {obj}!" said {friend}.', prob=0.7),
        _stage(
            Template(" {hero} gave the {obj} back, and {friend} {GLAD_ACT}.", "end"),
            Template(" So {hero} gave the {colour} {obj} to {friend}.", "end"),
        ),
    ),
    "share": (
        _stage(
            " There {he} met {friend=NAME-hero}, who was hungry and {SAD}.",
            " Not far away stood {friend=NAME-hero}, who had nothing to eat.",
        ),
        _stage(
            ' "Would you like some {snack}?" asked {hero}.',
            ' "I will share my {snack} with you," said {hero}.',
        ),
        _stage(" {friend} {GLAD_ACT} and said thank you.", prob=0.7),
        _stage(" They sat {SPOT|place} and ate the {snack} together."),
        _stage(
            Template(" {petname} got {PET_FOOD|pet} and {PET_ACT|pet}.", "end"),
            Template(" Even {petname} ate {PET_FOOD|pet}.", "end"),
        ),
    ),
    "build": (
        _stage(
            " {He} began to carry {stuff=STUFF} and {STUFF-stuff}.",
            " {hero} looked for {stuff=STUFF} all over the {place}.",
        ),
        _stage(" {petname} watched and {PET_ACT|pet}.", prob=0.5),
        _stage(
            " But the {thing} fell down {CAUSE}, and {he} was {SAD}.",
            " The first {thing} broke {CAUSE}.",
        ),
        _stage(
            ' "Let me help you," said {friend=NAME-hero}.',
            " Then {friend=NAME-hero} came and brought more {stuff}.",
        ),
        _stage(
            Template(" Together they made a new {thing} {SPOT|place}.", "end"),
            Template(" They tried again, and now the {thing} was strong.", "end"),
        ),
    ),
    "end": (
        _stage(
            " {hero} was very {HAPPY} and {GLAD_ACT}.",
            " {He} {GLAD_ACT}, and {petname} {PET_ACT|pet} too.",
            prob=0.85,
        ),
        _stage(' "You are a good friend," said {hero} to {friend}.', prob=0.4),
        _stage(
            " In the evening {hero} and {petname} went home and had {SUPPER}.",
            " From that day on, {hero} and {friend} often met at the {place}.",
            " That night {hero} told {petname} all about {friend}.",
        ),
    ),
}

_STORY_DERIVED = {
    "role=girl": {"he": "she", "He": "She", "his": "her", "His": "Her"},
    "role=boy": {"he": "he", "He": "He", "his": "his", "His": "His"},
}

# ---------------------------------------------------------------------------------------------
# Register two: inventory
# ---------------------------------------------------------------------------------------------

_ITEMS = {
    "BLT": "bolt",
    "SCR": "screw",
    "WSH": "washer",
    "PPE": "pipe",
    "VLV": "valve",
    "CBL": "cable",
    "FLT": "filter",
    "BRG": "bearing",
    "GSK": "gasket",
    "SPR": "spring",
}

_STOCK_TABLES: dict[str, Table] = {
    "DIGIT": _words("1 | 0 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9"),
    "ZONE": _words("A | B | C | D | E | F"),
    "MONTH": _words("JAN | MAR | MAY | JUL | SEP | NOV"),
    "DAY": _words(" | ".join(f"{day:02d}" for day in range(1, 29))),
    "CLERK": _words("KL | RT | MV | HS | DW"),
    "CODE": _words(" | ".join(_ITEMS)),
    # Of one width, so that no quantity begins with another.
    "QTY": _words("010 | 024 | 100 | 050 | 005 | 012 | 200 | 144 | 000 | 500"),
    "STATE": _words("ok | low | damaged | recount | reserved"),
    "REASON": _words("rust | no label | wrong size | late"),
}

_MAX_LINES = 6
_MIN_LINES = 3


def _stock_lines(then: str) -> tuple[Template, ...]:
    """Return the kinds of record, each followed by the plan ``then``."""
    item = "{code=CODE}-{DIGIT}{DIGIT} {item} qty {QTY}"
    return (
        Template(f"\nIN {item} bin {{zone}}{{DIGIT}}{{DIGIT}} {{STATE}}", then, 3.0),
        Template(f"\nOUT {item} dock {{DIGIT}}", then, 3.0),
        Template(f"\nCNT {item} {{STATE}}", then, 2.0),
        Template(f"\nHOLD {item} {{REASON}}", then),
    )


def _stock_plans() -> dict[str, tuple[Stage, ...]]:
    """Return one plan per number of lines written so far; the footer states that number."""
    header = "SHEET {DIGIT}{DIGIT}{DIGIT} ZONE {zone=ZONE} {MONTH} {DAY} CLERK {clerk=CLERK}"
    plans: dict[str, tuple[Stage, ...]] = {"sheet": (_stage(Template(header, "after 0")),)}
    for count in range(_MAX_LINES + 1):
        footer = _stage(f"\nEND {count} LINES {{clerk}}")
        more = 1.0 if count < _MIN_LINES else 0.6
        line = Stage(_stock_lines(f"after {count + 1}"), prob=more)
        plans[f"after {count}"] = (footer,) if count == _MAX_LINES else (line, footer)
    return plans


_STOCK_DERIVED = {f"code={code}": {"item": item} for code, item in _ITEMS.items()}

REGISTERS = {
    "stories": Grammar(_STORY_TABLES, _STORY_PLANS, "story", _STORY_DERIVED),
    "inventory": Grammar(_STOCK_TABLES, _stock_plans(), "sheet", _STOCK_DERIVED),
}


def documents(register: str, split: str, seed: int) -> Iterator[Document]:
    """Draw documents without end; each (register, split, seed) is a stream of its own."""
    grammar = REGISTERS[register]
    # Seeding with a string hashes it whole, so neighbouring seeds and splits are unrelated.
    rng = random.Random(f"{register}/{split}/{seed}")
    while True:
        yield grammar.draw(rng)
