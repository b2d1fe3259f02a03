"""Tables fit the terminal, cut words only if they must, and have no trailing blanks."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from mupscale_cli.cli.tables import Hanging, OpenTable


def shown(table, width, **options):
    console = Console(file=io.StringIO(), width=width, highlight=False, **options)
    console.print(table)
    return console.file.getvalue()


def names_table():
    table = OpenTable("tensors", "n", "shape", right=("n",))
    table.add_row("model.layers.*.self_attn.q_proj.weight", "28", "2048 x 2048 -> 4096 x 4096")
    table.add_row("lm_head.weight", "1", "")
    return table


@pytest.mark.parametrize("width", [200, 80, 60, 40])
def test_no_word_is_cut_and_no_line_is_too_long(width):
    text = shown(names_table(), width)
    words = {"model.", "layers.", "self_attn.", "q_proj.", "weight", "2048", "4096", "lm_head."}
    assert all(word in text for word in words)
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize("width", [200, 80, 30])
def test_lines_have_no_trailing_blanks(width):
    lines = shown(names_table(), width).splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_wide_terminal_has_one_line_per_row():
    assert shown(names_table(), 200).splitlines() == [
        "tensors                                  n  shape",
        "model.layers.*.self_attn.q_proj.weight  28  2048 x 2048 -> 4096 x 4096",
        "lm_head.weight                           1",
    ]


def test_lines_wrap_after_dots_of_names_but_not_in_numbers():
    table = OpenTable("what")
    table.add_row("layers.0.norm 3.25e-15")
    assert shown(table, 10).splitlines() == ["what", "layers.0.", "  norm", "  3.25e-15"]


def test_a_number_stays_with_its_unit():
    table = OpenTable("what", "size", right=("size",))
    table.add_row("a word and another", "131.1 kB")
    table.add_row("parameters", "146 k of 2.3 GB")
    lines = [line.split("  ")[-1] for line in shown(table, 20).splitlines()]
    assert "131.1 kB" in lines
    assert any(line.endswith("2.3 GB") for line in lines)
    assert not {"kB", "GB", "k", "k of"} & {line.strip() for line in lines}


def test_continuation_lines_are_indented():
    table = OpenTable("tree")
    table.add_row(Hanging(Text("|- attention.weight"), "|    "))
    assert shown(table, 16).splitlines()[1:] == ["|- attention.", "|    weight"]


def test_words_are_cut_only_as_a_last_resort():
    table = OpenTable("a", "b")
    table.add_row("x" * 30, "y")
    lines = shown(table, 20).splitlines()
    assert all(len(line) <= 20 for line in lines)
    assert sum(line.count("x") for line in lines) == 30


def test_markup_and_row_styles_are_kept():
    table = OpenTable("a")
    table.add_row("[red]word[/] and more", style="bold")
    text = shown(table, 8, force_terminal=True, color_system="standard")
    assert "\x1b[1;31mword" in text
    assert "\x1b[1m" in text.splitlines()[2]
