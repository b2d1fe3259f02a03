"""Read the nodes of a recipe's document as mappings, texts, flags and words."""

from __future__ import annotations

from mupscale_cli.architecture.document import Entries, Items, Node, Text


def entries_of(node: Node | None) -> Entries | tuple[()]:
    """Return the pairs of a mapping, which may be absent."""
    if node is None or (isinstance(node, Text) and node.is_null):
        return ()
    if not isinstance(node, Entries):
        raise node.error("expected a mapping")
    return node


def text_of(node: Node) -> Text:
    """Return a node that must be a single value."""
    if not isinstance(node, Text):
        raise node.error("expected a single value, not a list or a mapping")
    return node


def optional_text(node: Node | None) -> str:
    """Return the value of a node that may be absent."""
    return "" if node is None else text_of(node).value


def texts_of(node: Node) -> tuple[Text, ...]:
    """Return the values of a list, or a single value."""
    nodes = node.nodes if isinstance(node, Items) else (node,)
    return tuple(text_of(item) for item in nodes)


def check_identifier(text: Text) -> None:
    """Check that a text is a name."""
    if not text.value.isidentifier():
        raise text.error(
            f"`{text.value}` is not a valid name", hint="use letters, digits and `_`, and no digit at the start"
        )


def flag_of(node: Node | None) -> bool:
    """Return whether a flag is set; it may be absent."""
    if node is None:
        return False
    text = text_of(node)
    if text.value not in ("true", "false"):
        raise text.error(f"expected `true` or `false`, found `{text.value}`")
    return text.value == "true"


def one_of(known: tuple[str, ...], node: Node | None, what: str) -> str | None:
    """Return a word that must be a known one; None if it is absent."""
    if node is None:
        return None
    text = text_of(node)
    if text.value not in known:
        raise text.error(f"unknown {what} `{text.value}`", hint=f"known: {', '.join(known)}")
    return text.value


def plain_value(node: Node) -> object:
    """Convert a default to the JSON value that it denotes: null, a boolean, a number, a string or a list of these."""
    if isinstance(node, Items):
        return [plain_value(item) for item in node.nodes]
    text = text_of(node)
    if text.quoted:
        return text.value
    words: dict[str, object] = {"true": True, "false": False, "null": None, "~": None, "": None}
    if text.value in words:
        return words[text.value]
    for number in (int, float):
        try:
            return number(text.value)
        except ValueError:
            continue
    return text.value
