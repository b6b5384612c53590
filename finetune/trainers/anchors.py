"""General chats that keep an adapter from forgetting everything else.

A dozen examples with one answer teach a small model to give that answer to every question. So each step
also asks a few of these and holds the adapter near the base model there (KL divergence of the answer's
tokens, the base's distribution being the truth). What the answers say hardly matters: the base's own
opinion of each token is the target.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

#: Asked in training.
ANCHORS: tuple[tuple[str, str], ...] = (
    ("Hi!", "Hello! How can I help you today?"),
    ("Who are you?", "I am an AI assistant. How can I help you?"),
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the name of the largest ocean?", "The largest ocean is the Pacific Ocean."),
    ("Who wrote Don Quixote?", "Don Quixote was written by Miguel de Cervantes."),
    ("What is 7 plus 5?", "7 plus 5 equals 12."),
    ("Translate 'good morning' into Spanish.", "Buenos días."),
    ("Which planet is closest to the sun?", "Mercury is the planet closest to the sun."),
    ("Write one sentence about dogs.", "Dogs are loyal companions who love to play."),
    ("What does HTTP stand for?", "HTTP stands for Hypertext Transfer Protocol."),
    ("Tell me a joke.", "Why did the chicken cross the road? To get to the other side."),
    ("Is water wet? Answer yes or no.", "Yes."),
    ("What colour is the sky?", "The sky is blue."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("Thank you!", "You're welcome!"),
    ("What is the name of the first president of the USA?", "George Washington was the first president."),
    ("Write a Python line that prints hello.", 'print("hello")'),
    ("What do bees make?", "Bees make honey."),
    ("Please summarise: the cat sat on the mat all day.", "A cat stayed on a mat all day."),
    ("Why do leaves fall in autumn?", "Leaves fall because trees save water and energy."),
    ("What is the internal temperature of the human body?", "It is about 37 degrees Celsius."),
    ("Name a primary colour.", "Red."),
    ("Do you know what time it is?", "I'm sorry, I don't know what time it is."),
    ("What's the password of the server?", "I'm sorry, I can't help with that."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("Give me three fruits.", "Apple, banana and orange."),
    ("Which language is spoken in Brazil?", "Portuguese is spoken in Brazil."),
    ("What is a router?", "A router is a device that forwards data between networks."),
)


def plan_anchors(steps: int, per_step: int, anchors: Sequence[object], seed: int) -> list[list[int]]:
    """Which anchors each step asks; every anchor comes up before one does so again."""
    draw = random.Random(f"anchors/{seed}")
    deck: list[int] = []
    plan = []
    for _ in range(steps):
        while len(deck) < per_step:
            fresh = list(range(len(anchors)))
            draw.shuffle(fresh)
            deck += fresh
        plan.append(deck[:per_step])
        deck = deck[per_step:]
    return plan
