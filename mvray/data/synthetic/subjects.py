"""Which subjects of the art pack serve for what in a comic."""

from __future__ import annotations


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Drawings that are a head and nothing else: the face is all of it.
HEADS = _names("""
man woman boy girl baby old-man old-woman alien robot clown-face cowboy-hat-face goblin ogre skull nerd-face
smiling-face-with-sunglasses smiling-face-with-halo exploding-head face-with-symbols-on-mouth nauseated-face
jack-o-lantern cow-face dog-face horse-face mouse-face rabbit-face tiger-face pig-face fox frog hamster lion panda
bear wolf unicorn sun-with-face new-moon-face full-moon-face""")
HEADS_OF = {"fxemoji": _names("cat dog koala mouse tiger boar bird"), "streamline-emojis": _names("koala")}
FAMILIES = {  # one character with several expressions
    "smiley": _names("""
grinning-face face-with-tears-of-joy angry-face crying-face astonished-face winking-face unamused-face"""),
    "cat": _names("""
cat-face grinning-cat crying-cat pouting-cat weary-cat cat-with-wry-smile smiling-cat-with-heart-eyes"""),
    "devil": _names("""smiling-face-with-horns angry-face-with-horns"""),
    "monkey": _names("""monkey-face see-no-evil-monkey speak-no-evil-monkey"""),
}

# People down to the chest. Where an artist drew both a man and a woman, they are two characters.
BUSTS = _names("""
construction-worker cook farmer firefighter health-worker judge mechanic pilot police-officer student in-tuxedo""")
BUSTS_ALONE = _names("""prince princess person-with-veil person-with-skullcap""")
SKIN = {  # the colour that the artist gives all skin
    "noto": (255, 202, 38),
    "noto-v1": (251, 193, 27),
    "twemoji": (255, 220, 93),
    "fluent-emoji-flat": (255, 200, 61),
    "emojione": (255, 221, 103),
}

# Seen from head to foot or from the side: a body without a face box, rather than a guessed one.
FIGURES = _names("""
ghost man-dancing woman-dancing woman-running man-walking person-fencing snowboarder skier penguin owl octopus
snowman poodle elephant duck rooster turtle monkey cow goat crab snail chipmunk""")

# Scenery, by where it stands.
FAR = _names("""
house house-with-garden houses derelict-house church castle japanese-castle hotel hospital school office-building
department-store convenience-store bank classical-building post-office factory stadium circus-tent ferris-wheel
tokyo-tower statue-of-liberty mount-fuji mountain snow-capped-mountain volcano shinto-shrine love-hotel wedding
building-construction roller-coaster mosque deciduous-tree evergreen-tree palm-tree christmas-tree""")
NEAR = _names("""
deciduous-tree evergreen-tree palm-tree cactus automobile taxi bus minibus delivery-truck fire-engine ambulance
tractor bicycle motor-scooter motorcycle police-car oncoming-taxi oncoming-police-car postbox fuel-pump fountain
vertical-traffic-light bus-stop tent tulip sunflower rosette rose mushroom seedling
locomotive tram construction umbrella-on-ground""")
SKY = _names("""
cloud sun sun-behind-cloud crescent-moon full-moon first-quarter-moon airplane helicopter small-airplane rocket bird
dove balloon butterfly honeybee star rainbow waning-gibbous-moon eagle""")
INDOORS = _names("""
couch-and-lamp seat bed bathtub television radio desktop-computer printer books telephone guitar violin wastebasket
toilet shopping-cart backpack briefcase package crown trophy globe-showing-europe-africa candle
wrapped-gift microscope telescope drum alarm-clock birthday-cake money-bag handbag moai saxophone musical-keyboard""")
PICTURES = _names("""
sunrise sunset national-park cityscape bridge-at-night foggy desert milky-way mount-fuji framed-picture
sunrise-over-mountains world-map calendar castle ship sailboat rainbow door""")
SMALL = _names("""
cherry-blossom blossom hibiscus sparkles star red-heart beating-heart growing-heart musical-note maple-leaf
four-leaf-clover snowflake glowing-star heart-suit leaf-fluttering-in-wind droplet fallen-leaf high-voltage
butterfly diamond-suit spade-suit paw-prints bell""")
MARKS = _names("""
anger-symbol sweat-droplets collision dizzy zzz musical-notes beating-heart broken-heart light-bulb high-voltage
dashing-away two-hearts""")
