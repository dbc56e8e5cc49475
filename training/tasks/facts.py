"""Facts given in the prompt, questions about them, and questions the facts do not answer."""

from __future__ import annotations

from random import Random

import msgspec

from training.tasks.case import Turn, answer
from training.tasks.chat import vary
from training.tasks.lexicon import FILLER, draw

UNKNOWN = "I do not know."
REMEMBER = "Okay, I will remember that."


class Relation(msgspec.Struct, frozen=True):
    """A kind of fact: how it is told, asked for and answered. {s} is the subject, {v} the value."""

    subject: str
    value: str
    statement: str
    topic: str
    """Completes "The user asks ..."."""
    questions: tuple[str, ...]
    reply: str = ""
    """The answer; empty when the answer is the statement itself."""


def _relation(
    subject: str, value: str, statement: str, topic: str, questions: str, reply: str = ""
) -> Relation:
    return Relation(subject, value, statement, topic, tuple(questions.split("|")), reply)


RELATIONS = (
    _relation(
        "name",
        "city",
        "{s} lives in {v}.",
        "where {s} lives",
        "Where does {s} live?|In which city does {s} live?|Which city does {s} live in?|"
        "Where is the home of {s}?|Tell me where {s} lives.|What city does {s} live in?",
    ),
    _relation(
        "name",
        "job",
        "{s} works as a {v}.",
        "what {s} works as",
        "What does {s} work as?|What is the job of {s}?|What is {s}'s job?|"
        "Which job does {s} have?|"
        "What does {s} do for a living?|Tell me the job of {s}.",
    ),
    _relation(
        "name",
        "food",
        "{s} likes {v}.",
        "what {s} likes",
        "What does {s} like?|What does {s} like to eat?|Which food does {s} like?|"
        "Tell me what {s} likes.|What food does {s} like?",
    ),
    _relation(
        "name",
        "hobby",
        "{s} enjoys {v}.",
        "what {s} enjoys",
        "What does {s} enjoy?|What is the hobby of {s}?|What is {s}'s hobby?|"
        "Which hobby does {s} have?|Tell me what {s} enjoys.",
    ),
    _relation(
        "name",
        "animal",
        "{s} has a {v}.",
        "which animal {s} has",
        "Which animal does {s} have?|What pet does {s} have?|What is the pet of {s}?|"
        "What animal does {s} have?|Which pet does {s} have?|What is {s}'s pet?",
    ),
    _relation(
        "name",
        "age",
        "{s} is {v} years old.",
        "how old {s} is",
        "How old is {s}?|What is the age of {s}?|What is {s}'s age?|Tell me how old {s} is.",
    ),
    _relation(
        "name",
        "code",
        "The code of {s} is {v}.",
        "for the code of {s}",
        "What is the code of {s}?|What is {s}'s code?|Which code does {s} have?|"
        "Tell me the code of {s}.",
    ),
    _relation(
        "object",
        "place",
        "The {s} is in the {v}.",
        "where the {s} is",
        "Where is the {s}?|Where can I find the {s}?|In which room is the {s}?|"
        "Tell me where the {s} is.|Which room is the {s} in?",
    ),
    _relation(
        "object",
        "colour",
        "The {s} is {v}.",
        "which colour the {s} has",
        "What colour is the {s}?|Which colour does the {s} have?|What color is the {s}?|"
        "What is the colour of the {s}?|Tell me the colour of the {s}.",
    ),
    _relation(
        "object",
        "number",
        "The {s} costs {v} euros.",
        "what the {s} costs",
        "How much does the {s} cost?|What does the {s} cost?|What is the price of the {s}?|"
        "How much is the {s}?|Tell me the price of the {s}.",
    ),
    _relation(
        "object",
        "name",
        "The {s} belongs to {v}.",
        "who owns the {s}",
        "Who owns the {s}?|Whose is the {s}?|Who does the {s} belong to?|Who has the {s}?|"
        "Tell me who owns the {s}.",
    ),
    _relation(
        "event",
        "day",
        "The {s} is on {v}.",
        "when the {s} is",
        "When is the {s}?|On which day is the {s}?|What day is the {s}?|Tell me when the {s} is.|"
        "Which day is the {s}?",
    ),
    _relation(
        "event",
        "secret",
        "The password for the {s} is {v}.",
        "for the password for the {s}",
        "What is the password for the {s}?|Which password does the {s} have?|"
        "Tell me the password for the {s}.|What is the {s} password?",
    ),
)
OWN = (
    _relation(
        "",
        "name",
        "My name is {v}.",
        "for their name",
        "What is my name?|Who am I?|Do you know my name?|What's my name?|Tell me my name.",
        "Your name is {v}.",
    ),
    _relation(
        "",
        "city",
        "I live in {v}.",
        "where they live",
        "Where do I live?|In which city do I live?|Which city do I live in?|Tell me where I live.",
        "You live in {v}.",
    ),
    _relation(
        "",
        "colour",
        "My favourite colour is {v}.",
        "for their favourite colour",
        "What is my favourite colour?|Which colour do I like?|What's my favourite colour?",
        "Your favourite colour is {v}.",
    ),
    _relation(
        "",
        "job",
        "I work as a {v}.",
        "what they work as",
        "What do I work as?|What is my job?|What do I do for a living?|Tell me my job.",
        "You work as a {v}.",
    ),
    _relation(
        "",
        "animal",
        "I have a {v}.",
        "which animal they have",
        "Which animal do I have?|What pet do I have?|What is my pet?|Which pet do I have?",
        "You have a {v}.",
    ),
    _relation(
        "",
        "secret",
        "The secret word is {v}.",
        "for the secret word",
        "What is the secret word?|Which word is secret?|Tell me the secret word.|"
        "What was the secret word?|What's the secret word?",
        "The secret word is {v}.",
    ),
)


class Fact(msgspec.Struct, frozen=True):
    """One thing told to the model."""

    relation: Relation
    subject: str
    value: str

    def __str__(self) -> str:
        return self.relation.statement.format(s=self.subject, v=self.value)


def draw_facts(rng: Random, count: int, own_share: float = 0.12) -> list[Fact]:
    """Random facts, at most one value for each subject and relation.

    Few subjects carry several facts each, so that subject and relation must both be matched.
    """
    facts: list[Fact] = []
    seen: set[tuple[str, str]] = set()
    subjects: dict[str, list[str]] = {}
    for _ in range(count):
        relation = rng.choice(OWN if rng.random() < own_share else RELATIONS)
        known = subjects.setdefault(relation.subject, [])
        if not relation.subject:
            subject = ""
        elif known and rng.random() < 0.5:
            subject = rng.choice(known)
        else:
            subject = draw(rng, relation.subject)
            known.append(subject)
        if (relation.statement, subject) not in seen:
            seen.add((relation.statement, subject))
            facts.append(Fact(relation, subject, draw(rng, relation.value)))
    return facts


def tell(rng: Random, facts: list[Fact], filler: int = 0) -> str:
    """The facts as text: sentences in one paragraph, one per line, or a list; filler mixed in."""
    lines = [str(fact) for fact in facts]
    for _ in range(filler):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(FILLER))
    style = rng.random()
    if style < 0.7:
        return " ".join(lines)
    return "\n".join(lines) if style < 0.85 else "\n".join(f"- {line}" for line in lines)


def question_turn(rng: Random, fact: Fact, told: str = "") -> Turn:
    """A question that `fact` answers; `told` is put before it in the same user message."""
    relation = fact.relation
    question = vary(rng, rng.choice(relation.questions).format(s=fact.subject), 0.2)
    reply = (relation.reply or relation.statement).format(s=fact.subject, v=fact.value)
    reasoning = f"The user asks {relation.topic.format(s=fact.subject)}. I was told: {fact}"
    key = f"{relation.statement}|{fact.subject}|{fact.value}"
    text = f"{told}{rng.choice((' ', chr(10), chr(10) * 2))}{question}" if told else question
    return Turn("facts", text, (answer(reply, reasoning),), key, (fact.value,))


def unknown_turn(rng: Random, facts: list[Fact], told: str = "") -> Turn:
    """A question that no fact answers, often about a subject that other facts do name."""
    known = {(fact.relation.statement, fact.subject) for fact in facts}
    while True:
        relation = rng.choice(RELATIONS) if rng.random() < 0.9 else rng.choice(OWN)
        named = [fact.subject for fact in facts if fact.relation.subject == relation.subject]
        subject = draw(rng, relation.subject) if relation.subject else ""
        if named and rng.random() < 0.5:
            subject = rng.choice(named)
        if (relation.statement, subject) not in known:
            break
    question = vary(rng, rng.choice(relation.questions).format(s=subject), 0.2)
    reasoning = f"The user asks {relation.topic.format(s=subject)}. I was not told."
    text = f"{told}{rng.choice((' ', chr(10), chr(10) * 2))}{question}" if told else question
    told_key = facts[0].value if facts else ""
    key = f"{relation.statement}|{subject}|{told_key}"
    return Turn("unknown", text, (answer(UNKNOWN, reasoning),), key, (UNKNOWN,))


def remember_turn(rng: Random, told: str) -> Turn:
    """A turn that only tells facts."""
    text = (
        rng.choice(("", "", "Remember this: ", "Here are some facts. ", "Please remember: ")) + told
    )
    reply = answer(REMEMBER, "The user tells me facts. I should remember them.")
    return Turn("remember", text, (reply,), told[:40], (REMEMBER,))
