"""A small English: sentences about people, animals, food, weather and travel, mixed with captions.

Rules are tuples of alternatives. Inside one, `{rule}` is replaced by an alternative of that rule
and `{rule:form}` by one put into a form: "many" makes its last word plural, any other form inflects
its `*verb` ("s", "ed", "en", "ing", "base", and "are" and "eds" for plural subjects); `{rule:*}`
passes the form on. `a_` becomes "a" or "an" by the word after it.
"""

from __future__ import annotations

import itertools
import random
import re

from .scenes import CHEERFUL, COLOURS, GLOOMY, OBJECTS, SETTINGS, caption, is_heldout, random_scene

# ruff: noqa: SIM905
# fmt: off
SHE = """Anna Maria Emma Lucy Clara Nora Rosa Sophie Grace Julia Alice Helen Mia Ella Ruth
    Zoe""".split()
HE = "Tom Peter Paul Jack Leo Max David Omar Felix Henry Oscar Sam Ben Karl Ivan Hugo".split()
PRONOUNS = {
    "she": {"he": "she", "him": "her", "his": "her",
            "kin": "mother sister grandmother aunt daughter",
            "person": "woman girl queen princess lady"},
    "he": {"he": "he", "him": "him", "his": "his", "kin": "father brother grandfather uncle son",
           "person": "man boy king prince gentleman"},
}
OWNERS = {"I": "my", '"I': "my", "we": "our", "let": "our"}
# base: past and participle of the irregular verbs; all others end in -ed.
IRREGULAR = {
    v.split()[0]: v.split()[1:]
    for v in """be was been|have had had|do did done|buy bought bought|find found found
    |lose lost lost|sell sold sold|bring brought brought|hold held held|hide hid hidden
    |draw drew drawn|see saw seen|take took taken|eat ate eaten|drink drank drunk|make made made
    |sleep slept slept|sing sang sung|run ran run|swim swam swum|go went gone|come came come
    |read read read|write wrote written|sit sat sat|stand stood stood|fly flew flown
    |ride rode ridden|drive drove driven|leave left left|give gave given|build built built
    |break broke broken|keep kept kept|fall fell fallen|feel felt felt|think thought thought
    |know knew known|tell told told|say said said|meet met met|wear wore worn
    |forget forgot forgotten|grow grew grown|hear heard heard|begin began begun
    |catch caught caught|put put put|get got got|teach taught taught|win won won
    |dream dreamed dreamed|shine shone shone|blow blew blown""".replace(
        "\n    ", ""
    ).split("|")
}
DOUBLED = {"put", "get", "stop", "run", "swim", "sit", "forget", "begin", "win", "hug", "plan"}
PLURALS = {
    "sheep": "sheep", "deer": "deer", "fish": "fish", "goose": "geese", "mouse": "mice",
    "wolf": "wolves", "child": "children", "man": "men", "woman": "women", "gentleman": "gentlemen",
    "knife": "knives", "leaf": "leaves", "shelf": "shelves",
    "potato": "potatoes", "tomato": "tomatoes",
}

RULES: dict[str, tuple[str, ...]] = {
    "colour": COLOURS,
    "mood": CHEERFUL + GLOOMY,
    "object": OBJECTS,
    "job": tuple("""baker teacher doctor farmer sailor painter gardener nurse pilot driver singer
        writer cook carpenter shepherd musician scientist student librarian tailor clown builder
        engineer artist astronaut photographer captain shopkeeper dancer wizard neighbour visitor
        traveller guest""".split()),
    "someone": ("{person}", "{person}", "child", "{job}", "{job}", "{job}"),
    "animal": tuple("""dog cat horse cow sheep goat pig duck hen goose rabbit mouse fox bear wolf
        deer owl bird fish frog snail turtle bee butterfly hedgehog squirrel elephant lion tiger
        monkey camel whale dolphin penguin parrot donkey puppy kitten crow swan""".split()),
    "carry": tuple("""balloon kite umbrella hat shirt crown cup bottle lamp candle clock book key
        bell drum guitar chair ball star heart flower mushroom apple pear bag box basket coat scarf
        letter pen pencil map mirror blanket pillow spoon plate camera ring toy bucket rope brush
        doll flag ladder hammer suitcase phone watch picture newspaper violin piano carpet glass
        shoe glove button coin stone feather shell ticket present""".split()),
    "large": tuple("""house castle tent tree car train boat rocket table house castle tree boat
        bridge tower school church shop barn garden bus truck bicycle ship statue fountain bench
        wall fence windmill lighthouse cottage door window gate roof""".split()),
    "thing": ("{carry}", "{carry}", "{object}", "{large}"),
    "home": ("house", "castle", "tent", "tree", "boat", "cottage", "tower", "lighthouse",
        "windmill", "train", "mushroom"),
    "vehicle": ("car", "train", "boat", "bus", "truck", "bicycle", "ship", "plane", "rocket",
        "taxi"),
    "clothing": ("hat", "shirt", "coat", "scarf", "crown", "dress", "jacket", "sweater"),
    "fruit": ("apple", "pear", "orange", "lemon", "banana", "cherry", "plum", "mushroom", "carrot",
        "potato", "tomato", "onion", "egg", "sandwich", "cookie", "pancake"),
    "food": ("bread", "cheese", "soup", "rice", "honey", "cake", "jam", "chocolate", "salad",
        "fruit", "fish", "pizza", "ice cream", "pasta", "{fruit:many}", "{some} {fruit:many}",
        "a_ {fruit}", "a_ {colour} {fruit}"),
    "drink": ("tea", "coffee", "milk", "water", "juice", "cocoa", "lemonade", "hot chocolate",
        "apple juice"),
    "size": ("small", "big", "little", "large", "tiny", "huge"),
    "quality": tuple("""old new beautiful heavy broken empty strange wooden expensive cheap clean
        dirty round simple pretty famous ancient golden modern soft wonderful ordinary
        lost""".split()),
    "nature": tuple("""clever kind friendly young old brave lazy busy shy polite curious proud quiet
        tired tall nice""".split()),
    "feeling": tuple("""happy sad tired angry proud nervous hungry thirsty lonely excited cheerful
        surprised calm bored afraid weary merry gloomy glad worried""".split()),
    "adj": ("{size}", "{quality}", "{quality}", "{mood}"),
    "adjs": ("{adj}", "{colour}", "{colour}", "{adj} {colour}", "{size} {colour}",
        "{size} {quality}", "{mood} {quality}"),
    "some": ("some", "many", "a few", "several", "{num}", "{num}", "a lot of"),
    "num": ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve",
        "twenty", "fifty", "a hundred"),
    "hour": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
        "eleven", "twelve"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": ("January", "February", "March", "April", "May", "June", "July", "August", "September",
        "October", "November", "December"),
    "season": ("spring", "summer", "autumn", "winter"),
    "town": ("Paris", "London", "Rome", "Lisbon", "Vienna", "Cairo", "Oslo", "Berlin", "Tokyo",
        "Madrid", "Boston", "Athens"),
    "material": ("wood", "stone", "glass", "paper", "gold", "silver", "wool", "iron", "clay"),
    "subject": ("music", "history", "mathematics", "poetry", "science", "art", "football", "chess",
        "gardening", "cooking"),
    # Noun phrases
    "a_thing": ("a_ {thing}", "a_ {adjs} {thing}", "a_ {adjs} {thing}", "the {adjs} {thing}"),
    "a_carry": ("a_ {carry}", "a_ {adjs} {carry}", "a_ {adjs} {carry}", "the {carry}",
        "{his} {carry}", "{his} {adjs} {carry}"),
    "the_thing": ("the {thing}", "the {adjs} {thing}", "the {adjs} {object}", "this {thing}",
        "my {carry}", "our {large}"),
    "things": ("{thing:many}", "{adjs} {thing:many}", "{colour} {object:many}"),
    "a_animal": ("a_ {animal}", "a_ {adjs} {animal}", "the {adjs} {animal}", "{his} {animal}",
        "a_ {nature} {animal}"),
    "the_animal": ("the {animal}", "the {adjs} {animal}", "our {animal}", "the {nature} {animal}",
        "my {adjs} {animal}"),
    "who": ("{N}", "{N}", "{N}", "the {someone}", "the {nature} {someone}", "my {kin}",
        "a_ {nature} {someone}", "our {kin}"),
    "other": ("{M}", "{M}", "the {someone}", "the {nature} {someone}", "{his} {kin}",
        "{his} friend", "{his} friends"),
    "they": ("they", "the two {job:many}", "the children", "{N} and {K}", "{N} and {K}",
        "the {job:many}", "my friends", "some people"),
    # Where and when
    "setting": tuple(p for phrases in SETTINGS.values() for p in phrases),
    "place": ("in the kitchen", "in the garden", "at school", "in the library", "at the market",
        "in the park", "near the river", "by the lake", "behind the house", "on the roof",
        "in the attic", "at the station", "in the village", "in the mountains", "on the farm",
        "on the island", "at the harbour", "in the museum", "at home", "in the bakery",
        "under the bridge", "on the beach", "in the street", "on the hill", "in {town}",
        "near the castle", "under a_ {adjs} tree", "on the table", "in a_ {adjs} house",
        "in front of the {large}", "behind the {large}", "next to the {thing}", "{setting}",
        "{setting}", "{setting}", "{setting}"),
    "to": ("to the market", "to school", "to the station", "to {town}", "to the sea",
        "to the forest", "to the city", "into the garden", "to the library", "to the village",
        "home", "to the castle", "across the bridge", "through the forest", "along the river",
        "over the hills", "into the mountains", "through the rain", "through the snow",
        "across the desert", "through the meadow", "around the lake", "to the theatre",
        "to the doctor"),
    "past": ("yesterday", "last {season}", "last week", "last year", "this morning",
        "{num} days ago", "{num} years ago", "on {day}", "in {month}", "last night", "an hour ago",
        "after dinner", "before breakfast", "at {hour} o'clock"),
    "future": ("tomorrow", "next week", "next year", "in {num} days", "tonight", "soon", "on {day}",
        "next {season}", "in {month}", "in an hour", "after lunch", "one day", "at {hour} o'clock",
        "later"),
    "usual": ("every day", "every morning", "every evening", "every {day}", "in {season}",
        "all day", "at night", "on Sundays", "twice a week", "after work", "in the afternoon",
        "all the time", "before bed"),
    "often": ("often", "never", "always", "sometimes", "usually", "rarely", "still", "really"),
    # What people do, one verb to inflect
    "do": ("*buy {a_carry}", "*find {a_carry}", "*lose {his} {carry}", "*paint {a_thing}",
        "*carry {a_carry}", "*sell {things}", "*hold {a_carry}", "*draw {a_thing}",
        "*see {a_thing}", "*clean {the_thing}", "*repair {the_thing}", "*hide {a_carry}",
        "*take {a_carry}", "*eat {food}", "*eat {food}", "*drink {drink}",
        "*drink a_ cup of {drink}", "*cook {food}", "*make {food}", "*look at {a_thing}",
        "*photograph {a_thing}", "*build {a_thing}", "*feed {a_animal}", "*see {a_animal}",
        "*play with {a_animal}", "*talk to {other}", "*help {other}", "*meet {other}",
        "*visit {other}", "*read a_ {adj} book", "*write a letter to {M}", "*play the guitar",
        "*play the drum", "*sing a_ {mood} song", "*tell a_ {mood} story",
        "*wear a_ {adjs} {clothing}", "*fly a_ {colour} kite", "*light a_ {adj} candle",
        "*ring the {adj} bell", "*plant {some} {colour} flowers", "*pick {some} {fruit:many}",
        "*draw {some} {things}", "*study {subject}", "*teach {subject}", "*collect {things}",
        "*open the {adj} {carry}", "*admire {the_thing}"),
    "act": ("*sleep", "*sing", "*dance", "*laugh", "*wait", "*work", "*read", "*sit", "*stand",
        "*play", "*rest", "*dream", "*walk", "*smile", "*whistle", "*swim"),
    "move": ("*walk", "*run", "*go", "*travel", "*ride {a_animal}", "*drive", "*hurry",
        "*come back", "*take the {vehicle}"),
    "vp": ("{do:*}", "{do:*}", "{do:*}", "{do:*} {place}", "{act:*} {place}", "{act:*}",
        "{move:*} {to}", "{move:*} {to} with {other}", "*give {a_carry} to {M}",
        "*put {a_carry} {place}", "*leave {a_carry} {place}", "*bring {M} {a_carry}",
        "*live {place}", "{act:*} with {other}"),
    "beast": ("*sleep {place}", "*run {to}", "*eat {food}", "*hide {place}",
        "*play with a_ {adjs} ball", "*watch {other}", "*sit on the {adjs} {thing}",
        "*drink {drink}", "*jump over the {thing}", "*walk {to}", "*stand {place}",
        "*follow {other}", "*look for food", "*rest {place}", "*sleep under the {adjs} {large}"),
    "weather": ("it *be raining", "it *be snowing", "the sun *shine", "the wind *blow",
        "it *be cold", "it *be warm", "the weather *be {weatherly}", "the sky *be {colour}",
        "the night *be dark", "it *be windy", "it *be foggy", "the snow *be deep",
        "the sea *be calm", "the rain *stop", "the storm *begin"),
    "weatherly": ("nice", "bad", "beautiful", "terrible", "sunny", "dreary", "gloomy", "lovely",
        "cold", "wonderful"),
    "state": ("*be {feeling}", "*be {feeling}", "*feel {feeling}", "*be very {feeling}", "*be late",
        "*be ill", "*be at home"),
    "thought": ("the {thing} *be {adj}", "the {vehicle} *be late", "{K} *be {nature}",
        "{weather:*}", "the {fruit} *be {colour}", "{K} {vp:*}", "{the_animal} *be {feeling}"),
    "say": ("said", "answered", "laughed", "whispered", "shouted", "replied"),
}

# One topic is drawn, then one of its templates.
TOPICS: dict[str, tuple[str, ...]] = {
    "past": ("{who} {vp:ed} {past}.", "{who} {vp:ed}.", "{past} {who} {vp:ed}.",
        "{they} {vp:eds} {past}.", "{who} has already {vp:en}.",
        "{who} {vp:ed} and then {he} {vp:ed}.", "{who} had never {vp:en} before.",
        "{they} have just {vp:en}.", "when {he} was young, {who} {vp:ed} {usual}.",
        "once upon a time there was a_ {adj} {someone}.",
        "long ago a_ {nature} {someone} lived in a_ {adjs} {home} {setting}.",
        "{who} did not {vp:base} {past}.", "{they} got up at {hour} o'clock {past}."),
    "present": ("{who} {often} {vp:s}.", "{who} {vp:s} {usual}.", "{they} {vp:are} {usual}.",
        "{who} is {vp:ing} now.", "{they} are {vp:ing}.", "{who} wants to {vp:base}.",
        "{who} likes to {vp:base} {usual}.", "{who} does not {vp:base}.", "I {often} {vp:base}.",
        "we do not {vp:base} {usual}.", "{who} is a_ {nature} {someone}.",
        "{N} works as a_ {job} in {town}."),
    "future": ("{who} will {vp:base} {future}.", "{future} {they} will {vp:base}.",
        "{who} is going to {vp:base} {future}.", "{they} are going to {vp:base}.",
        "I hope that {M} will {vp:base} {future}.", "{who} would like to {vp:base}.",
        "perhaps {they} will {vp:base} {future}.", "{who} plans to {vp:base} {future}."),
    "why": ("{who} {vp:ed} because {weather:ed}.", "{who} {state:ed}, so {he} {vp:ed}.",
        "{weather:ed}, so {they} {vp:eds}.", "{who} {state:ed} because {thought:ed}.",
        "if {weather:s}, {they} will {vp:base}.", "although {weather:ed}, {who} {vp:ed}.",
        "{weather:s}, but {who} {state:s}.", "{who} bought a_ {adjs} umbrella because of the rain.",
        "when {weather:s}, {who} {vp:s}.", "while {who} was {vp:ing}, {weather:ed}.",
        "{who} {vp:ed}, but {thought:ed}."),
    "things": ("{the_thing} is {adj}.", "{the_thing} is {adj} and {colour}.",
        "{the_thing} belongs to {other}.", "the {adj} {carry} {place} has been lost.",
        "{the_thing} was made of {material}.", "{the_thing} is too {adj}.",
        "the old clock {place} has stopped.", "there is a_ {adjs} {carry} on the table.",
        "there are {num} {things} {place}.", "{who} has {num} {things}.",
        "nobody knows where the {adjs} {thing} is.", "{the_thing} fell on the floor.",
        "I like {colour} {thing:many} more than {colour} {thing:many}.",
        "my favourite colour is {colour}.", "{who} painted the {thing} {colour}.",
        "{the_thing} costs {num} coins.", "the door of the {adjs} {large} is {colour}.",
        "{some} {things} are {adj}.", "a_ {carry} is lying on the {adj} {large}.",
        "the {material} {carry} is very {quality}."),
    "animals": ("{the_animal} {beast:ed}.", "{the_animal} {beast:s} {usual}.",
        "{who} has a_ {adjs} {animal}.", "{animal:many} eat {food}.",
        "{the_animal} is {vp_animal}.", "the {animal:many} {beast:eds}.",
        "{num} {animal:many} {beast:eds} {past}.", "a_ {animal} is smaller than a_ {animal}.",
        "{who} saw {a_animal} {place}.", "the {animal} and the {animal} are good friends.",
        "{animal:many} and {animal:many} live {place}.",
        "{the_animal} is {feeling} because {weather:s}."),
    "vp_animal": ("{feeling}", "hungry", "{beast:ing}"),
    "food": ("{who} eats {food} for breakfast.", "{who} would like a_ cup of {drink}.",
        "the {fruit:many} are sweet and {colour}.", "{food} and {drink}, please.",
        "{who} cooked {food} for {other}.", "would you like some {drink}?",
        "{they} had {food} for dinner.", "the soup is too hot.",
        "{who} bought {num} {fruit:many} at the market.", "the {colour} {fruit} tastes {tasting}.",
        "{who} put the {fruit:many} into a_ {adjs} {vessel}.",
        "there is no {drink} in the {colour} {vessel}."),
    "tasting": ("sweet", "good", "sour", "strange", "delicious", "bitter"),
    "vessel": ("cup", "bottle", "basket", "box", "bag", "glass", "bowl", "bucket"),
    "weather": ("{weather:s}.", "{weather:ed}.", "{weather:ed} {past}.",
        "{weather:ed} and {they} {state:eds}.", "it will rain {future}.",
        "it often snows in {month}.", "in {season} the days are {length}.", "what a_ {mood} day!",
        "the weather was {weatherly} {past}.", "a_ {adj} wind came from the sea.",
        "the {colour} leaves fall from the trees.", "the moon shines over the {adj} {landscape}.",
        "there was a storm {setting}.", "the {landscape} is {mood} in {season}.",
        "it was a_ {mood} night."),
    "length": ("long", "short", "warm", "cold", "sunny", "dull", "bright"),
    "landscape": ("city", "desert", "forest", "meadow", "sea", "village", "valley", "hills",
        "river", "island", "field"),
    "travel": ("{who} went {to} by {vehicle} {past}.",
        "the {vehicle} to {town} leaves at {hour} o'clock.", "how far is it to {town}?",
        "{they} travelled from {town} to {town}.", "the {colour} {vehicle} stopped {place}.",
        "{who} missed the {vehicle}.", "it takes {num} hours to go {to}.",
        "{who} is waiting for the {vehicle} {place}.", "the road leads {to}.",
        "a_ {adjs} boat sailed along the coast.", "the {adjs} train goes {to}.",
        "we spent {num} days {place}."),
    "questions": ("where is {the_thing}?", "where are my {adjs} {carry:many}?",
        "who lives in the {adjs} {home}?", "did {who} {vp:base}?", "why did {other} {vp:base}?",
        "can you {vp_you}?", "what is {who} doing {place}?", "how many {things} are there?",
        "have you seen my {adjs} {carry}?", "do you like {colour} {thing:many}?",
        "what time is it?", "is the {thing} {colour} or {colour}?", "when will {they} come back?",
        "which {thing} is yours, the {colour} one or the {colour} one?", "whose {carry} is this?"),
    "vp_you": ("help me", "see the {adjs} {large}", "give me the {adjs} {carry}", "play the guitar",
        "open the {adj} door", "swim"),
    "orders": ("please give me the {adjs} {carry}.", "do not forget your {adjs} {carry}!",
        "let us {vp_we}.", "look at the {adjs} {thing}!", "put the {carry} {place}, please.",
        "come {to} with me!", "be careful with the {adjs} {carry}.",
        "never touch the {adj} {carry}!", "wait for {M} {place}.", "close the window, {M}."),
    "vp_we": ("go {to}", "sing a song", "eat {food}", "play {place}", "draw {a_thing}",
        "look for {the_thing}", "go home"),
    "dialogue": ('{N} said, "{thought:s}."', '"I {often} {vp:base}," said {N}.',
        '"where is {the_thing}?" asked {who}.', '"{thought:ed}," said {who}.',
        '"good morning, {M}," said {N}.', '"thank you for the {adjs} {carry}," said {who}.',
        '{N} asked, "may I have the {adjs} {carry}?"',
        '"are you {feeling}?" asked {N}. "No, I am {feeling}," {say} {M}.',
        '"look, {a_animal}!" shouted {who}.', '"I have lost my {carry}," whispered {N}.',
        '"yes, I am a_ {job}," answered {who}.'),
    "feelings": ("{who} {state:s}.", "{who} {state:ed} {past}.", "{they} {state:are}.",
        "{who} {state:ed} when {thought:ed}.", "it makes {him} {feeling} to see {things}.",
        "{who} loves the {mood} colours of {season}.", "I am {feeling} today.",
        "{who} is as {feeling} as a_ {animal}.", "{who} told {M} that {thought:ed}.",
        "{who} thinks that {thought:s}.", "{N} knows that {thought:s}.",
        "{the_thing} looks {mood}.", "{who} is afraid of {animal:many}.",
        "a_ {mood} song makes us {feeling}."),
    "comparison": ("the {colour} {thing} is {more} than the {colour} {thing}.",
        "{who} is {taller} than {M}.", "a_ {large} is bigger than a_ {carry}.",
        "this is the {most} {thing} in {town}.", "{the_thing} is not as {adj} as the {colour} one.",
        "{N} is the {tallest} {job} in the village.", "I prefer {drink} to {drink}.",
        "one {thing} is {colour}, the other is {colour}."),
    "more": ("bigger", "smaller", "older", "newer", "heavier", "cheaper", "more beautiful",
        "brighter", "more expensive"),
    "most": ("biggest", "smallest", "oldest", "newest", "most beautiful", "strangest",
        "most famous", "saddest", "loveliest"),
    "taller": ("taller", "older", "younger", "happier", "faster", "stronger", "kinder", "busier"),
    "tallest": ("tallest", "oldest", "youngest", "happiest", "kindest", "best", "laziest",
        "bravest"),
    "views": ("the {thing} {setting} is {colour}.",
        "{setting} stands a_ {thing} that is {size} and {colour}.",
        "a_ {size}, {colour} {thing} {setting}.", "a_ {colour} {animal} {setting}.",
        "a_ {someone} with a_ {adjs} {carry} {setting}.",
        "a_ {adjs} {large} and a_ {adjs} {animal} {setting}.",
        "a photo of a_ {adjs} {thing} {place}.", "{num} {colour} {thing:many} {setting}.",
        "a_ {thing}, {colour} and {adj}, {setting}.", "in the picture there is a_ {adjs} {thing}.",
        "a painting of {num} {things} {place}.", "{setting} {who} {vp:ed}.",
        "the picture shows a_ {someone} {vp:ing}.", "this is a_ {adjs} {thing}.",
        "I see a_ {adjs} {thing}.", "a_ {adjs} {thing} under a_ {colour} sky.",
        "the {thing} is {colour} and the {thing} is {colour}."),
}
# fmt: on
STARTS = tuple(t for t, templates in TOPICS.items() if templates[0][-1] in '.?!"')


def inflect(verb: str, form: str) -> str:
    """Return `verb` in one of the forms named in the module's head."""
    if verb == "be" and form in ("s", "are", "eds"):
        return {"s": "is", "are": "are", "eds": "were"}[form]
    if form in ("base", "are"):
        return verb
    if form == "s":
        return "has" if verb == "have" else plural(verb)
    if form == "ing":
        if verb.endswith("e") and not verb.endswith(("ee", "be")):
            return verb[:-1] + "ing"
        return verb + (verb[-1] if verb in DOUBLED else "") + "ing"
    if verb in IRREGULAR:
        return IRREGULAR[verb][form == "en"]
    ending = "d" if verb.endswith("e") else "ed"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "i" + ending
    return verb + (verb[-1] if verb in DOUBLED else "") + ending


def plural(noun: str) -> str:
    """Return the plural of a noun; also, by the same spelling rules, a verb's third person."""
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "sh", "ch", "x", "go", "do")) else "s")


def expand(template: str, rng: random.Random, bound: dict[str, str], form: str = "") -> str:
    """Replace every rule in `template`; names and pronouns are `bound` once per sentence."""

    def replace(match: re.Match[str]) -> str:
        rule, inner = match[1], form if match[2] == "*" else match[2] or ""
        if rule in bound:
            return bound[rule]
        alternative = rng.choice(RULES.get(rule) or TOPICS[rule])
        text = expand(alternative, rng, bound, "" if inner == "many" else inner)
        if inner == "many":
            *before, noun = text.split(" ")
            text = " ".join([*before, plural(noun)])
        return text

    text = re.sub(r"\*(\w+)", lambda match: inflect(match[1], form), template)
    return re.sub(r"\{(\w+)(?::(\w+|\*))?\}", replace, text)


def mentions_heldout(text: str) -> bool:
    """Return whether all words of a held-out combination occur in `text`, plurals included."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    words |= {w[:-1] for w in words if w.endswith("s")}
    kinds = [[word for word in kind if word in words] for kind in (COLOURS, OBJECTS, SETTINGS)]
    return any(is_heldout(*combination) for combination in itertools.product(*kinds))


def free_sentence(rng: random.Random) -> str:
    """Return a sentence that is no caption; combinations held out never meet in it."""
    while True:
        gender = rng.choice(("she", "he"))
        name = rng.choice(SHE if gender == "she" else HE)
        second, third = rng.sample([n for n in SHE + HE if n != name], 2)
        bound = {"N": name, "M": second, "K": third, **PRONOUNS[gender]}
        bound |= {word: rng.choice(bound[word].split()) for word in ("kin", "person")}
        template = rng.choice(TOPICS[rng.choice(STARTS)])
        first = template.split()[0]
        if first in OWNERS or "{they}" in template:
            bound["his"] = OWNERS.get(first, "their")
        text = expand(template, rng, bound)
        text = re.sub(r"\ba_ (?=[aeiou])", "an ", text).replace("a_ ", "a ")
        text = re.sub(r'(^"?|(?:said|asked), ")([a-z])', lambda m: m[1] + m[2].upper(), text)
        if len(text.split()) <= 26 and not mentions_heldout(text):
            return text


def world_caption(rng: random.Random) -> str:
    """Return a caption of a scene that is not held out: mostly plain, at times with moods."""
    return caption(random_scene(rng), rng, rng.choices(((), CHEERFUL, GLOOMY), (6, 2, 2))[0])


def sentence(rng: random.Random) -> str:
    """Return an English sentence, about every third a caption of the drawn world."""
    return world_caption(rng) if rng.random() < 0.35 else free_sentence(rng)
