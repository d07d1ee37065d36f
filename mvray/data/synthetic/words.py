"""What is said in the comics, and what they are called."""

SPEECH = """Wait for me!|Where did it go?|I knew it.|Not again...|Did you hear that?|Look over there!|We have to hurry.
|What is this?|Leave it to me.|No way!|Are you sure?|It was here a minute ago.|Thank you, really.|I can't believe it!
|Well, well.|That makes no sense.|Good morning!|You are late.|Who is there?|Come on, let's go home.|Stop right there!
|I have a plan.|Don't look at me like that.|It's only the wind.|So that's how it is.|Just a little more...|Run!|Huh?|Hm.
|Yes!|What do you mean?|Tell me everything.|It is too quiet.|I will not give up.|You promised!|That was close.
|One more time.|Is anybody home?|My lunch!|Oh no, oh no.|Sorry, my fault.|We did it!|How long has it been?|Shh!
|There is something in the box.|Let me think.|Give it back!|I am fine. Really.|Tomorrow, then.|You again?
|Nobody told me that.|It smells delicious.|The train leaves at noon.|Hold on tight!|Ha ha ha!|Be careful.
|Did you bring the map?|I was waiting for you.|This time we win.|Why me?|Ask the neighbours.|It can't be helped."""
CAPTIONS = """The next morning...|Meanwhile, in town|Three days later|That night|At the same time|Some time ago
|Nobody knew yet.|The road was long.|It began to rain.|Back home|And so it began.|A quiet afternoon"""
SOUNDS = """BAM|WHOOSH|CRACK|DON|THUD|SLAM|ZAP|CLICK|BOOM|TAP TAP|RUMBLE|FWIP|SPLASH|CREAK|DING|POW|HA HA|VROOM|SNAP"""
FIRST = """Midnight Silver Quiet Paper Distant Crimson Hidden Lucky Electric Wandering Frozen Golden Broken Little
Secret Sleepy Thunder Velvet Seventh Glass"""
SECOND = """Teahouse Harbor Parade Compass Garden Express Orchard Detective Lantern Academy Meadow Rooftop Carnival
Voyage Library Kitchen Umbrella Signal Summer Station"""


def spoken(text: str) -> tuple[str, ...]:
    """The phrases of one of the texts above."""
    return tuple(phrase.strip() for phrase in text.split("|"))
