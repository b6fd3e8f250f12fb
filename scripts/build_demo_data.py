"""A seed -> the demo's support tickets: byzer_ft/assets/data/tickets.jsonl and tickets_heldout.jsonl.

A ticket is one line about one product, one issue and one hint of how urgent it is. The product is copied from the
text, the urgency follows the wording of the hint, the team follows the kind of issue. Rows are raw: the demo's SELECT
makes instruction and output from their columns.

What is held out: every (product, issue) pair on one fifth of the grid. Each product, each issue and each hint is seen
in training, but a held-out ticket never names a product together with an issue that training showed for it; so no
held-out ticket, and no product x issue x hint, appears there. `python scripts/build_demo_data.py` rewrites both files.

Knows nothing of models. tests/test_tiny_model.py checks the claims above on the shipped files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

SEED = 20261121
OUT = Path(__file__).resolve().parent.parent / "byzer_ft" / "assets" / "data"
TRAIN_ROWS, HELDOUT_ROWS = 400, 100

PRODUCTS = (
    "Lumo Lamp",
    "Kite Router",
    "Pico Scanner",
    "Onyx Printer",
    "Violet Camera",
    "Copper Lock",
    "Tango Speaker",
    "Willow Watch",
    "Basalt Drive",
    "Fern Monitor",
    "Ember Charger",
    "Quill Keyboard",
    "Saffron Scale",
    "Juniper Sensor",
    "Atlas Phone",
    "Nimbus Clock",
    "Zephyr",
    "Orbit",
    "Cobalt",
    "Marvo",
)
ISSUES: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for {}",
        "the invoice for {} has the wrong amount",
        "we want a refund for {}",
        "my card was refused when I paid for {}",
        "the discount on {} is missing",
    ),
    "accounts": (
        "I cannot log in to {}",
        "my password for {} does not work",
        "{} says that my account is locked",
        "a new colleague needs access to {}",
        "I lost the admin role in {}",
    ),
    "software": (
        "the {} app crashes on start",
        "the new update of {} is very slow",
        "the search in {} finds nothing",
        "the export from {} has an error",
        "the network of {} is lost again",
    ),
    "shipping": (
        "the {} parcel has not arrived",
        "the courier left {} at the wrong door",
        "the {} delivery is late",
        "please send {} to our new office",
        "where is my order of {}",
    ),
    "repairs": (
        "the screen of {} has a crack",
        "{} does not turn on",
        "the battery of {} is empty after one hour",
        "{} makes a loud noise",
        "a button of {} fell off",
    ),
}
HINTS: dict[str, tuple[str, ...]] = {
    "high": (
        "this is urgent",
        "we are blocked",
        "help right now",
        "nobody can work",
        "we need it today",
        "very critical for us",
    ),
    "normal": (
        "please help this week",
        "a reply in a few days is fine",
        "please have a look",
        "can you check this",
        "thank you for your help",
        "please answer this question",
    ),
    "low": (
        "no rush",
        "it can wait",
        "only a minor thing",
        "when you have time",
        "next month is fine",
        "not important at all",
    ),
}
SHAPES = ("{issue}, {hint}.", "{hint}: {issue}.", "Hello, {issue}, {hint}!", "{issue} - {hint}")


@dataclass(frozen=True)
class Ticket:
    id: int
    ticket: str
    product: str
    urgency: str
    team: str


def is_held_out(product: str, issue: str) -> bool:
    """One fifth of the product x issue grid: each row and each column of it has some cells in and some out."""
    teams = list(ISSUES)
    team = next(team for team in teams if issue in ISSUES[team])
    column = teams.index(team) * 5 + ISSUES[team].index(issue)
    return (PRODUCTS.index(product) + column + column // 5) % 5 == 0


def write_ticket(shape: str, product: str, issue: str, hint: str) -> str:
    text = shape.format(issue=issue.format(product), hint=hint)
    return text[0].upper() + text[1:]


def tickets(held_out: bool, count: int, seed: int, first_id: int) -> list[Ticket]:
    """Distinct tickets; products, issues and hints come in turn, so that each is seen about equally often."""
    rng = Random(f"{seed}/{held_out}")
    cells = [
        (product, issue, team)
        for team, issues in ISSUES.items()
        for issue in issues
        for product in PRODUCTS
        if is_held_out(product, issue) == held_out
    ]
    hints = [(hint, urgency) for urgency, wordings in HINTS.items() for hint in wordings]
    rng.shuffle(cells)
    rng.shuffle(hints)
    rows = []
    for index in range(count):
        product, issue, team = cells[index % len(cells)]
        hint, urgency = hints[index % len(hints)]
        text = write_ticket(rng.choice(SHAPES), product, issue, hint)
        rows.append(Ticket(first_id + index, text, product, urgency, team))
        if index % len(hints) == len(hints) - 1:
            rng.shuffle(hints)
    return rows


def write_jsonl(path: Path, rows: Iterable[Ticket]) -> None:
    lines = (json.dumps(vars(row), ensure_ascii=False) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    write_jsonl(OUT / "tickets.jsonl", tickets(False, TRAIN_ROWS, SEED, first_id=1))
    write_jsonl(OUT / "tickets_heldout.jsonl", tickets(True, HELDOUT_ROWS, SEED, first_id=1001))


if __name__ == "__main__":
    main()
