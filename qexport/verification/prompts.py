"""What a file is asked: prompts to answer, text to read, and strings to cut into tokens.

The probe strings separate llama.cpp's pre-tokenizers from each other: digits (one by one, by three, all),
runs of blanks and line ends, contractions in either case, combining marks (Qwen2's against Qwen3.5's),
scripts without spaces, emoji joined by zero-width joiners. All are in NFC: llama.cpp does not normalize, so
a decomposed string would accuse the file of something that is true of every GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qexport.errors import InputError

CHAT_PROMPTS = (
    "In two or three sentences: why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
)
RAW_PROMPTS = (
    "The water cycle begins when the sun",
    "def fibonacci(n):\n    ",
)

# Drafts are right more often where text is predictable: prose, code, a list, and another language.
BENCH_PROMPTS = (
    *CHAT_PROMPTS,
    "List ten animals of the sea, one on each line, with one sentence about each.",
    "Übersetze ins Deutsche: The train to the coast leaves at seven, and the last one back at ten.",
)
BENCH_TEXT = """A lighthouse keeper writes down what the sea does. In the morning the water is flat and
grey, and boats go out in a line. By noon the wind has turned to the west; the keeper counts the waves
between two rocks and notes how many seconds pass. In the evening a storm stands over the bay. The lamp is
lit an hour early, its beam goes round once in twelve seconds, and every ship that sees it knows where it
is. At night nothing happens for a long time, which is what a keeper likes best.
"""

_PROBES = (
    "Hello, world! This is a test.",
    "I've been told he'll go; they'RE not sure WE'D like it.",
    "0 1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 2026-11-22",
    " one blank in front",
    "a  b   c    d\t\te\n\nf\n \n  \n   g\r\nh ",
    'def f(x: int) -> str:\n    if x >= 10:\n        return f"{x!r}"  # ok?\n\treturn None\n',
    '{"key": [1, 2.5e-3, null], "s": "a\\nb"}; x+=1; y=x**2; !!! ??? ... ------ ====== ``` </div>',
    "Größe, naïve façade, œuvre, Łódź, İstanbul, Ελληνικά, кошка не спит, Việt Nam",
    "我想在苹果工作，因为天气很好。今日は良い天気ですね。안녕하세요 세계",
    "مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดีชาวโลก កាន់តែពិសេស",
    "🚀 👩‍👩‍👧‍👦 ✅ 🦙🦙 ½ ² Ⅷ ٣٤٥ ℃ ™ — “quoted” …",
    "https://example.com/a?b=c&d=%20e user@example.org C:\\path\\file.txt camelCaseWord snake_case_word",
)
_MAX_SPECIAL = 12
_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Probe:
    """A text to be cut, alone or as a prompt (with what the tokenizer puts around it)."""

    text: str
    prompt: bool = False


def probes(files: Mapping[str, bytes]) -> list[Probe]:
    """What is asked of a tokenizer, special tokens of the source's own among it.

    Raises:
        InputError: the source's ``tokenizer.json`` cannot be read.
    """
    from qexport.families.tokenizer import tokenizer_json  # of all families; a benchmark's words need none

    found = [Probe(text) for text in _PROBES]
    if _FILE in files:
        try:
            added = tokenizer_json(files[_FILE], _FILE).added
        except ValueError as error:
            raise InputError(f"{_FILE}: {error}") from None
        names = [str(token["content"]) for token in added if token.get("special")]
        # They must stay whole and leave what is around them alone.
        found += [Probe(f"a {name}b\n") for name in names[:_MAX_SPECIAL]]
    return found + [Probe(text, prompt=True) for text in RAW_PROMPTS]


def ids_by_file(files: Mapping[str, bytes], asked: Sequence[Probe]) -> list[tuple[int, ...]] | None:
    """Ids by ``tokenizer.json`` as it stands; ``None`` without one.

    Raises:
        InputError: it cannot be read.
    """
    if _FILE not in files:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(files[_FILE].decode("utf-8"))
    except Exception as error:
        raise InputError(f"{_FILE} cannot be read: {error}") from error
    return [tuple(tokenizer.encode(one.text, add_special_tokens=one.prompt).ids) for one in asked]
