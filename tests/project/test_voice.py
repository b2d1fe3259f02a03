"""Text is plain, idiomatic American English: the phrases below must not return."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "mupscale_cli"
# Unwanted phrases, and what to write instead.
PHRASES = {
    r"such an? one": "name the thing",
    r"leav(e|es|ing) (`?[\w-]+`? )?away|left away": "omit",
    r"\banew\b": "again, from the beginning",
    r"so many [a-z]+s\b": "N of them, how many",
    r"(?<!\b(?:none|each|most|both|some) )\bof (which|whom)\b": "two sentences",
    r"\bwho(m?ever|mso)\b|\bwhoever\b": "name who",
    r"whatever (it|they|he)\b": "name what",
    r"\b(is|are|was|were|be|been|get|gets|has|have) told\b|\btold (about|of|apart)\b": "say who reports what to whom",
    r"\b(go|goes|going|gone|went) on\b": "continue",
    r"(if|where) not there\b|\bthere already\b": "if it does not exist, if it exists",
    r"anything else beside": "anything else",
    r"as (it|they) happens? to be": "unchanged",
    r"\b(knows?|says?|needs?|has|have) not\b(?! (been|yet|changed))": "does not know, has no",
    r"\bbut for\b": "except for",
    r"\bnothing but\b": "only",
    r"\bwith which to\b|\bby which to\b|\bin which to\b": "to do it with",
    r"\bfor ever\b": "forever",
    r"\blikewise\b": "the same",
    r"\bhalf done\b.{0,20}\bbegun\b|\bis begun\b": "started",
    r"\b(as|than|where|what|that) was asked for\b|\basked for nothing\b": "requested",
    r"\bof (its|their|his) own making\b": "of its own",
    r"\bas they say\b": "say what they do",
    r"\btells? not\b|\bhindered\b|\bthereof\b|\bwhereof\b|\btherein\b|\bwherein\b|\bhitherto\b": "plain words",
    r"\bSome eighty\b": "about eighty",
    r"\bmade wider by\b": "widened with",
    r"\bwhat (came|comes|has come) of\b": "the outcome of",
    r"\"\"\"The same\b": "say what it does",
    r"\bputs? (it |them )?right\b": "fix",
    r"\bno more than that\b": "only",
    r"\bcannot be looked into\b": "cannot be read",
    r"\bwhat (follows|hangs) from it\b": "name it",
    r"\bgrows? for itself\b": "is widened separately",
}
BRITISH = (
    r"\b(un)?\w*(initiali|normali|optimi|parametri|reali|recogni|organi|summari|minimi|maximi|generali|speciali|locali"
    r"|seriali|tokeni|quanti|finali|utili|visuali|penali|equali)s(e|ed|es|ing|ation|ations|er|ers)\b"
    r"|\b(colour(s|ed|ing|less)?|neighbour(s|ing|hood)?|behaviours?|favour\w*|honour\w*)\b"
    r"|(?<!\")\blicences?\b|\bcentres?\b|\bgrey\b|\bcancell(ed|ing)\b|\bmodell(ed|ing)\b|\blabell(ed|ing)\b|\bartefacts?\b"
    r"|\blearnt\b|\bspelt\b|\bwhilst\b|\bamongst\b|\btowards\b"
)
# Names of classes that say nothing about their purpose.
PRIVATE_NAMES = r"\bclass _?(Room|Told|Felt|Begun|Again|Own|Found)\b"

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "Makefile")),
    *sorted((ROOT / ".ci").iterdir()),
    *sorted((ROOT / ".github").rglob("*.*")),
    *sorted((PACKAGE / "cli" / "pages").glob("*.md")),
    *sorted((ROOT / "recipes").iterdir()),
    *sorted((ROOT / "examples").iterdir()),
    *(ROOT / "tests" / name for name in ("experiments/README.md", "fuzzing/README.md")),
]
ROOMS = {
    "root": sorted(PACKAGE.glob("*.py")),
    **{
        folder.name: sorted(folder.rglob("*.py"))
        for folder in sorted(PACKAGE.iterdir())
        if folder.is_dir() and any(folder.rglob("*.py"))
    },
}


def one_line(text: str) -> str:
    """Join lines, comment marks and adjacent string literals, to find phrases that span them."""
    text = re.sub(r"\"\s*\n\s*f?\"", "", text)
    return re.sub(r"\s*\n\s*(#:? ?|- |> )?", " ", text)


def mistakes(text: str) -> list[str]:
    """Return every unwanted phrase of a text with the words around it."""
    line = one_line(text)
    patterns = {**PHRASES, BRITISH: "American spelling", PRIVATE_NAMES: "name what it is"}
    return [
        f"…{line[max(0, found.start() - 40) : found.end() + 30]}… ({found[0]!r}: {instead})"
        for pattern, instead in patterns.items()
        for found in re.finditer(pattern, line, re.IGNORECASE)
    ]


def test_phrases_are_found_across_lines():
    assert len(mistakes("Is there such a one?")) == 1
    assert len(mistakes("# the colour that it\n# is told\n# to have")) == 2
    assert len(mistakes('"it goes "\n    f"on there"')) == 1
    assert len(mistakes("class _Told:\n    pass")) == 1
    assert mistakes("The colors differ from those of its neighbors; mupscale continues.") == []


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_documents_are_plain_english(file):
    assert mistakes(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_are_plain_english(room):
    found = {file.relative_to(ROOT): mistakes(file.read_text(encoding="utf-8")) for file in ROOMS[room]}
    assert {file: phrases for file, phrases in found.items() if phrases} == {}
