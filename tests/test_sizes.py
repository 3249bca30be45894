"""Sizes as people write and read them."""

import pytest

from qexport.sizes import parse_size, size_text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", None),
        ("5", 5),
        ("1.5k", 1500),
        ("2 GB", 2 * 10**9),
        ("-1", None),
        ("1T", 10**12),
        ("9" * 400, None),
        ("1." + "9" * 400, None),
        ("1e9", None),
        ("٣G", None),
        ("inf", None),
    ],
)
def test_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.9, "1 kB"),
        (999_700, "1 MB"),
        (2_729_792, "2.73 MB"),
        (17_100_000_000, "17.1 GB"),
        (655_000_000_000, "655 GB"),
        (12_345_000_000_000, "12345 GB"),
    ],
)
def test_written_as_the_hub_does(size, text):
    assert size_text(size) == text
