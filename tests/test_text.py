"""Numbers, names and values are formatted for people."""

import pytest

from mupscale_cli.text import (
    bytes_text,
    count_text,
    counted,
    listed,
    number_text,
    numbers_text,
    shown,
    starred,
    suggest,
    time_text,
)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1700, "1.7 kB"), (4e12, "4.0 TB"), (5e15, "5000.0 TB")]
)
def test_bytes(count, text):
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12"), (999, "999"), (1234, "1.23 k"), (999_600, "1 M"), (254e6, "254 M")]
)
def test_counts_of_parameters(count, text):
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("value", "text"), [(4, "4"), (0.25, "1/4"), (2**0.5 * 2**0.5, "2"), (0.3, "0.3"), (2**0.5, "1.414")]
)
def test_coefficients(value, text):
    assert number_text(value) == text


def test_durations():
    assert [time_text(seconds) for seconds in (0.04, 12.4, 200, 7500)] == ["0.0 s", "12 s", "3 min 20 s", "2 h 5 min"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "3"), (range(28), "0-27"), ([0, 1, 2, 7], "0-2, 7"), (range(0, 28, 2), "0, 2 .. 26"), ([1, 3], "1, 3")],
)
def test_numbers_are_shown_as_ranges(numbers, text):
    assert numbers_text(numbers) == text


def test_names_beyond_the_limit_are_counted():
    assert listed("abc") == listed("abc", 3) == "`a`, `b`, `c`"
    assert listed("abc", 2) == "`a`, `b` and 1 more"


def test_nouns_agree_with_their_number():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert counted(2, "axis", "axes") == "2 axes"


@pytest.mark.parametrize(
    ("name", "text"), [("h.10.w2.b", "h.*.w2.b"), ("0.1.w", "*.*.w"), ("l.2", "l.*"), ("3", "*"), ("a1.b_2", "a1.b_2")]
)
def test_numbers_in_names(name, text):
    assert starred(name) == text


def test_long_values_are_truncated():
    assert shown("x" * 20, 8) == "'xxxxxxx…"
    assert shown([1, 2]) == "[1, 2]"


def test_suggestions_contain_the_nearest_name():
    assert suggest("fnn", ["ffn", "embed"]) == "did you mean `ffn`? known: embed, ffn"
    assert suggest("xyz", []) is None
