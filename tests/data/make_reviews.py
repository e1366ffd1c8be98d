"""Make reviews.csv, 2,000 short film reviews to try `lstm.py` with.

Everything in it is made up for this project: the films, their viewers, each sentence.
Run the program to write the file anew; it comes out the same, byte by byte.

The order of the words decides the label, so that counting words is not enough:

- Over half of the reviews are turned round: they praise and then condemn, or the
  other way about, and what follows the "but" or the change of mind decides.
- Of the opinions 7% are negated ("the music is never dull"), of the verdicts 4% ("not
  a good film"). With many more, a small LSTM takes longer to learn anything.
- Half of the reviews tell of the evening and the plot first, half of them last.

Half of each part is positive. The test part has films, plots, and pairs of a subject
and an adjective ("the music is lovely") that the training part has not.
"""

import csv
import random
from pathlib import Path

SIZES = {"train": 1600, "test": 400}
TURNED, NEGATED, NEGATED_VERDICTS = 0.5, 0.07, 0.04  # the shares named above
OPPOSITE = {"positive": "negative", "negative": "positive"}
dice = random.Random(5)


def phrases(text):
    """Return the phrases of a text, which slashes separate."""
    return [" ".join(phrase.split()) for phrase in text.split("/")]


# Films: some for the training part, others for the test part
TITLES = {
    "train": phrases("""Salt on the Stairs / The Ninth Lantern / Borrowed Rain / A Map
        of Small Rooms / The Glass Orchard / Seven Quiet Sundays / Iron Lilac / The
        Clockmaker's Debt / Midnight at the Depot / The Owl Ledger / Copper Moon /
        Letters to a Locksmith / The Last Ferry to Orrin / Winter Tenants / Thin Walls /
        The Violet Staircase / Under the Tin Roof / Dust and Apricots / Platform Eleven
        / Harvest in Grey / The Orphan Comet / Nine Keys for Helga / Sparrow Street /
        The Baker's Alibi / Low Tide Radio / Marble and Moss / A Cabin near Tolm / The
        Juniper Trial / Two Chairs in Spring / The Hollow Bell"""),
    "test": phrases("""The Saffron Staircase / Eight Small Keys / Under the Windmill /
        Winter in Karsk / The Piano Tenants / Amber Street / Seven Umbrellas"""),
}
HEROES = {
    "train": phrases("""a retired postman / a young baker / two sisters / a night nurse
        / a stubborn judge / an old sailor / a village teacher / a watchmaker / a bus
        driver / three cousins / a former boxer / a travelling barber / a shy librarian
        / a country doctor / a widowed farmer / a deaf composer / two rival cooks / a
        tax inspector / a young priest / a lighthouse keeper / a circus clown / an
        ageing thief / a prison guard / a family of glassblowers"""),
    "test": phrases("""a retired gardener / a young violinist / two beekeepers / an old
        chemist / a travelling magician / a shy goalkeeper"""),
}
DEEDS = {
    "train": phrases("""shared a house / set out to find a brother / saved a school /
        inherited a debt and a dog / kept an old secret / forged a will / found a diary
        / hid a stranger from the police / planned one last robbery / opened a hotel /
        wrote letters to a prisoner / took a stolen painting home / raised a wild goose
        / sold the family piano / ran for mayor / repaired a radio / bought a broken
        boat / moved in with a rival / hunted for a forger"""),
    "test": phrases("""raised an orchid / hunted for a meteorite / hid a falcon / saved
        an observatory / found a telegram / opened a bank"""),
}
PLACES = {
    "train": phrases("""in a fishing village / in the mountains / in a small northern
        town / during a long strike / near an empty hotel / at the end of a war / on an
        island / by the railway / in a city without lights / at the seaside / behind a
        theatre / in a border town / in an old mill / near the harbour / in a flooded
        valley / in a year without rain / at the edge of a forest"""),
    "test": phrases("""in the desert / near a canal / behind a casino / in a suburb /
        during a carnival"""),
}
PLOTS = phrases("""The film is about {hero} who {deed} {place}. / {Hero} {deed} {place}:
    that is the story. / We get to know {hero} who {deed} {place}. / The plot: {hero}
    {deed} {place}. / We meet {hero} who {deed} {place}.""")

# Evenings, at the cinema and at home: how they begin, and remarks for later
DAYS = phrases("Monday / Tuesday / Wednesday / Thursday / Friday / Saturday / Sunday")
PEOPLE = phrases("my sister / my brother / an old friend / my aunt / our neighbour")
EVENINGS = [
    {
        "first": phrases("""We saw {title} on a wet {day} evening. / Our film club
            showed {title} on {day}. / {Person} had picked {title}. / {title} was the
            late film on {day}. / On {day} {person} took me to see {title}. / {Person}
            had tickets for {title}. / {title} is on at our little cinema. / I saw
            {title} with {person}."""),
        "early": phrases("""The room was half full. / We sat in the third row. / There
            was a long queue at the till. / The man next to me unwrapped a
            sandwich."""),
        "late": phrases("""We took the last tram home. / It was raining when we came
            out. / On the way home we talked it over. / Afterwards we walked along the
            river."""),
    },
    {
        "first": phrases("""I watched {title} at home on {day}. / {Person} lent me
            {title}. / After a long {day} I put on {title}. / {title} was on television
            on {day}. / {Person} and I watched {title} on the sofa. / With a cold and a
            blanket, I watched {title}."""),
        "early": phrases("""I had made a large pot of tea. / The cat slept on my knees.
            / It was already dark. / My phone stayed in the other room."""),
        "late": phrases("""It was past midnight when I went to bed. / The tea had gone
            cold by then. / Outside it had begun to snow. / I thought about it the next
            day."""),
    },
]

# Opinions: an adjective on a subject
SUBJECTS = phrases("""acting / story / camera work / music / dialogue / ending / editing
    / direction / humour / opening scene / set design""")
ADJECTIVES = {  # the first five can be negated; who would say "not superb"?
    "positive": phrases("""good / clever / convincing / charming / lovely / wonderful /
        brilliant / superb / great"""),
    "negative": phrases("""bad / dull / boring / clumsy / silly / awful / terrible /
        dreadful / poor"""),
}
OPINIONS = phrases("""the {subject} is {adjective} / I found the {subject} {adjective} /
    the {subject} struck me as {adjective} / the {subject} is really {adjective} / there
    is something {adjective} about the {subject}""")
NOT_OPINIONS = phrases("""the {subject} is not {adjective} / the {subject} is never
    {adjective} / there is nothing {adjective} about the {subject} / I did not find the
    {subject} {adjective}""")
ONE = ["{Opinion}."]
TWO = phrases("""{Opinion}, and {other}. / {Opinion}. {Other}. / {Opinion}; {other}. /
    {Opinion}. What is more, {other}. / For one thing, {opinion}. For another,
    {other}.""")
BUT = phrases("""But {opinion}. / But {opinion}, and {other}. / Yet {opinion}. / Still,
    {opinion}, and {other}. / All the same, {opinion}. / But then {opinion}.""")

# The film as a whole: the verdict, what had been expected, what it seemed at first
VERDICTS = {
    "positive": phrases("""{Film}. / What {film}! / It is {film}. / I loved it. / I
        loved every minute of it. / I would see it again. / It was worth the money."""),
    "negative": phrases("""{Film}. / What {film}! / It is {film}. / I hated it. / I
        hated every minute of it. / Two hours I will never get back. / It was a waste of
        time."""),
}
NOT_VERDICTS = {
    "positive": phrases("""Not {film}. / It is not {film}. / It was not a waste of
        time."""),
    "negative": phrases("""Not {film}. / It is not {film}. / It was not worth the money.
        / I would not see it again."""),
}
EXPECTED = {
    "positive": phrases("""I had expected {film}. / Friends had promised me {film}. /
        The papers had called it {film}. / I was sure that I would love it. / I had
        expected to love every minute of it. / Everybody had said it was worth the
        money."""),
    "negative": phrases("""I had expected {film}. / Friends had warned me of {film}. /
        The papers had called it {film}. / I was sure that I would hate it. / I had
        expected to hate every minute of it. / Everybody had said it was a waste of
        time. / I had expected two hours I would never get back."""),
}
AT_FIRST = {
    "positive": phrases("""After half an hour I would have called it {film}. / At first
        I loved it. / For an hour I loved every minute of it."""),
    "negative": phrases("""After half an hour I would have called it {film}. / At first
        I hated it. / For an hour I hated every minute of it."""),
}
RIGHT = phrases("And so it turned out. / And so it was. / That proved to be true.")
WRONG = phrases("It came out quite differently. / It turned out otherwise.")
CHANGED = phrases("Then I changed my mind. / Then it all changed.")


def chance(share):
    return dice.random() < share


def fill(templates, **words):
    """Put words into one of the templates; {Word} is {word} with a capital letter."""
    capitals = {k.capitalize(): v[:1].upper() + v[1:] for k, v in words.items()}
    return dice.choice(templates).format(**words, **capitals)


def adjectives(side, negated):
    """Return those that speak for a side, which is a label."""
    return ADJECTIVES[OPPOSITE[side]][:5] if negated else ADJECTIVES[side]


def opinions(templates, part, side, subjects):
    """Return a sentence or two on the last of the subjects, which are used up."""
    clauses = []
    for subject in (subjects.pop(), subjects.pop()):
        negated = chance(NEGATED)
        known = enumerate(adjectives(side, negated), SUBJECTS.index(subject))
        known = [a for n, a in known if (n % 5 == 0) == (part == "test")]  # the pairs
        words = {"subject": subject, "adjective": dice.choice(known)}
        clauses.append(fill(NOT_OPINIONS if negated else OPINIONS, **words))
    return fill(templates, opinion=clauses[0], other=clauses[1])


def whole(templates, side, negated=False):
    """Return a sentence on the film as a whole."""
    adjective = dice.choice(adjectives(side, negated))
    article = "an" if adjective == "awful" else "a"
    return fill(templates[side], film=f"{article} {adjective} film")


def verdict(side):
    negated = chance(NEGATED_VERDICTS)
    return whole(NOT_VERDICTS if negated else VERDICTS, side, negated)


def grounds(part, label):
    """Return what leads to the verdict: expectations, opinions, or nothing."""
    other, subjects = OPPOSITE[label], SUBJECTS.copy()
    dice.shuffle(subjects)
    few = dice.choice([None, None, None, ONE, TWO])
    few = [opinions(few, part, label, subjects)] if few else []
    if chance(TURNED):
        way = dice.choice(["but", "but", "but", "expected", "at first"])
        if way == "expected":
            return [whole(EXPECTED, other), dice.choice(WRONG), *few]
        if way == "at first":
            first = [whole(AT_FIRST, other), opinions(ONE, part, other, subjects)]
            return [*first, dice.choice(CHANGED), *few]
        first = [opinions(TWO, part, other, subjects)]
        if chance(0.4):
            first = [whole(EXPECTED, other), opinions(ONE, part, other, subjects)]
        return [*first, opinions(BUT, part, label, subjects)]
    if chance(0.2):
        return [whole(EXPECTED, label), dice.choice(RIGHT), *few]
    return few


def review(part, label):
    """Return a text: the evening, the plot, and what the viewer thinks."""
    evening = dice.choice(EVENINGS)
    words = {"title": TITLES[part], "day": DAYS, "person": PEOPLE}
    words |= {"hero": HEROES[part], "deed": DEEDS[part], "place": PLACES[part]}
    words = {name: dice.choice(choices) for name, choices in words.items()}
    story = [fill(evening["first"], **words)]
    story += [dice.choice(evening["early"])] if chance(0.2) else []
    story += [fill(PLOTS, **words)]
    late = [dice.choice(evening["late"])] if chance(0.2) else []
    thoughts = [*grounds(part, label), verdict(label)]
    both = [*story, *thoughts] if chance(0.5) else [*thoughts, *story]
    return " ".join([*both, *late])


def is_fine(text):
    """Tell whether a text has a fair length, and no adjective twice."""
    known = ADJECTIVES["positive"] + ADJECTIVES["negative"]
    once = all(text.lower().count(adjective) < 2 for adjective in known)
    return once and 30 <= len(text.split()) <= 80


def main():
    rows = {}
    for part, size in SIZES.items():
        for n in range(size):
            label, text = ["positive", "negative"][n % 2], ""
            while text in rows or not is_fine(text):
                text = review(part, label)
            rows[text] = label, part
    path = Path(__file__).with_name("reviews.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "split"])
        writer.writerows([text, *rest] for text, rest in rows.items())


if __name__ == "__main__":
    main()
