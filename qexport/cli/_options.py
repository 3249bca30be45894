"""Options that mean the same in every command, declared once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qexport.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable


class _Size(click.ParamType[int]):
    """``2G``, ``500M``: bytes, in powers of 1000 as llama.cpp's --split-max-size takes them."""

    name = "size"

    def __init__(self, *, none: bool = False) -> None:
        self._none = none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if self._none and str(value).strip() == "0":
            return 0
        size = parse_size(str(value))
        if size is None:
            self.fail(f"{value!r} is not a size such as 2G or 500M", param, ctx)
        return size


class Whole(click.ParamType[int]):
    """An integer in a range; the help calls it N, and who is outside the range is told what it is."""

    name = "n"

    def __init__(self, least: int, most: int) -> None:
        self._range = click.IntRange(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return int(self._range.convert(value, param, ctx))


class Finite(click.ParamType[float]):
    """As :class:`Whole`, of any numbers but ``nan``, which is in every range to click, and ``inf``."""

    name = "number"

    def __init__(self, least: float, most: float | None = None, *, min_open: bool = False) -> None:
        self._range = click.FloatRange(least, most, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(self._range.convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a number that can be kept to", param, ctx)
        return number


def together(*declared: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
    """Several options as one decorator; the last is the first in the help."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in declared:
            function = option(function)
        return function

    return decorate


SIZE = _Size()
LIMIT = _Size(none=True)
"""A size, or 0 for none."""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = 1 << 40
"""More tokens than there are; numbers beyond it are typing errors that nothing downstream should meet."""
WORDS = "qexport.words"
"""Key among a command's facts: how much is said (``Saying``, as a number)."""


def _say(amount: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def note(context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            context.find_root().meta[WORDS] = amount

    return note


JSON = together(
    click.option(
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_say(0),
        help="Say nothing on stderr but what is wrong.",
    ),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_say(2), help="Say every check made."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
)
"""How much is said, and to whom."""
OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace what is already there.")
OUT = click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results; made if it is not there.",
)
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Print the plan with exact sizes (-v: every tensor). Writes nothing."
)
THREADS = click.option("--threads", type=Whole(1, 4096), help="Worker threads.  [default: every processor]")

NO_VERIFY = click.option("--no-verify", is_flag=True, help="Do not run what was written. Receipts say so.")
ALLOW_UNVERIFIED = click.option(
    "--allow-unverified",
    is_flag=True,
    help="Exit with 0 where nothing is wrong, but something was not run, or not compared with its source.",
)
LLAMA_SERVER = click.option(
    "--llama-server",
    metavar="PATH",
    type=FILE,
    help="Run GGUF files with this llama-server instead of the llama.cpp inside xllamacpp.",
)
DEVICE = click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where text goes through the model, layer by layer: cpu, cuda or cuda:N.",
)

TYPES_FROM = click.option(
    "--types-from",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE",
    help="Take the stored type of each tensor from FILE: another artifact of this format (GGUF file, MLX "
    "folder), or JSON as --dry-run --json prints it.",
)


aim_options = together(
    click.option(
        "--best",
        "quality",
        flag_value="best",
        help="Of each type the best file of its size: types of tensors chosen as with --like, error "
        "feedback, importance. It is compared with the plain type on held-out text; where it is no better, "
        "the plain type is written and the exit code is 5.",
    ),
    click.option(
        "--heldout",
        type=FILE,
        metavar="FILE",
        help="The text that --best compares on.  [default: a tenth of the corpus, kept apart; with a matrix "
        "that is ready the text inside the package]",
    ),
    click.option(
        "--max-kld",
        type=Finite(0, min_open=True),
        metavar="NATS",
        help="The smallest file that is predicted to diverge by no more than this, in nats per token; of "
        "types that are quick to encode (GGUF: none below Q2_K).",
    ),
    click.option(
        "--like", metavar="TYPE", help="The best file that is no larger than one of TYPE; see --size."
    ),
    click.option(
        "--bpw",
        type=Finite(0, min_open=True),
        metavar="BITS",
        help="The best file of no more bits per weight; see --size.",
    ),
    click.option(
        "--size",
        type=SIZE,
        metavar="SIZE",
        help="The best file of no more than this, e.g. 17G: each tensor gets the type at which all errors "
        "together cost the model least, by sensitivities, which come with the importance matrix. One of "
        "--size, --bpw, --like and --max-kld.",
    ),
)
"""What types are chosen for, instead of naming them."""


model_argument = together(
    click.option("--revision", help="Branch, tag or commit of a MODEL on the Hub."), click.argument("model")
)
"""MODEL and ``--revision``."""


def _of_base(flag: str, words: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``flag BASE`` and its revision."""
    return (
        click.option(f"{flag}-revision", help="Branch, tag or commit of that BASE on the Hub."),
        click.option(flag, metavar="BASE", help=words),
    )


def head_base(words: str) -> Callable[..., Any]:
    """``--mtp-from BASE`` and its revision."""
    return together(*_of_base("--mtp-from", words))


_TOWER_MODE = click.Choice(["auto", "keep", "graft", "drop"])
tower_options = together(  # "mtp" alone is a field of MLX's options
    *_of_base(
        "--vision-from",
        "The base model whose vision tower is grafted: a folder or a Hub id.  [default: the one of --base, "
        "else of --mtp-from]",
    ),
    click.option(
        "--vision",
        "vision_mode",
        type=_TOWER_MODE,
        default="auto",
        show_default=True,
        help="What becomes of the vision tower. auto keeps one that is there, and grafts where there is a "
        "base with one that fits; drop writes the text-only form.",
    ),
    head_base("The base model whose MTP head is grafted: a folder or a Hub id."),
    click.option(
        "--mtp",
        "mtp_mode",
        type=_TOWER_MODE,
        default="auto",
        show_default=True,
        help="What becomes of the MTP head. auto keeps one that is there, grafts when --mtp-from is "
        "given, and refuses a checkpoint that declares a head it lacks.",
    ),
    *_of_base(
        "--base",
        "The model that was fine-tuned, a folder or a Hub id: MTP head and vision tower are taken of it "
        "where MODEL has lost them.",
    ),
)
"""What becomes of MTP head and vision tower, and the bases that they are taken of."""


CORPUS = click.option(
    "--corpus",
    type=FILE,
    help="Text, or JSON lines with messages, text or input_ids.  [default: the corpus inside the package]",
)
CALIB_CHUNK = click.option(
    "--calib-chunk",
    type=Whole(2, 1 << 20),
    default=512,
    show_default=True,
    help="Tokens in a chunk; every chunk is read as a text of its own.",
)
calibration_options = together(
    click.option(
        "--sensitivity-tokens",
        type=Whole(2, COUNT),
        default=4096,
        show_default=True,
        help="The most tokens that gradients are taken of, from the beginning of the text.",
    ),
    click.option(
        "--sensitivity",
        is_flag=True,
        help="Collect gradients, too: what an error in each row of the weights costs. The layers are "
        "read once more.",
    ),
    click.option(
        "--activation-memory",
        type=SIZE,
        help="Hidden states that may stay in memory while collecting; more go to a temporary file.  "
        "[default: half of what is free]",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "mixed", "bfloat16", "float32"]),
        default="auto",
        show_default=True,
        help="Arithmetic of the collecting pass. mixed is llama.cpp's (bf16 in, float32 out), bfloat16 "
        "faster on CPUs that have it; auto is one of these for a bf16 checkpoint.",
    ),
    DEVICE,
    click.option(
        "--calib-seed", type=int, default=0, show_default=True, help="Order of the corpus's records."
    ),
    CALIB_CHUNK,
    click.option(
        "--calib-tokens",
        type=Whole(2, COUNT),
        help="The most tokens to read.  [default: all of a corpus of yours, 131072 of the built-in one]",
    ),
)
"""How an importance matrix is collected."""


feedback_options = together(
    click.option(
        "--feedback-tokens",
        type=Whole(2, COUNT),
        default=32768,
        show_default=True,
        help="The most tokens that are sent along for --feedback, and for nvfp4 --scheme NVFP4.",
    ),
    click.option(
        "--feedback-text",
        metavar="FILE",
        type=FILE,
        help="The text for --feedback, where it is not the corpus of the importance matrix.",
    ),
    click.option(
        "--feedback",
        is_flag=True,
        help="Error feedback (GPTQ) inside the format: columns make up for what rounding others got wrong. "
        "Goes with importance; a text is sent through the model while it is written.",
    ),
)
"""``--feedback``, and the text that goes along."""


verify_options = together(
    click.option(
        "--timeout",
        "time_limit",
        type=Finite(1, 1e7),
        help="Seconds that loading and generating may take.",
    ),
    ALLOW_UNVERIFIED,
    click.option(
        "--draft-max",
        type=Whole(1, 16),
        default=3,
        show_default=True,
        help="Tokens that the MTP head drafts at a time.",
    ),
    click.option("--tokens", "n_predict", type=Whole(8, 4096), help="Tokens to generate per prompt."),
    click.option("--prompt", "prompts", multiple=True, help="Prompt to answer instead of the built-in ones."),
    LLAMA_SERVER,
)
"""How artifacts are run and judged."""


runtime_options = together(
    click.option(
        "--runtime-python",
        metavar="PATH",
        type=FILE,
        help="The Python that has the runtime, such as ~/vllm/bin/python; it need not have qexport.",
    ),
    click.option(
        "--runtime",
        type=click.Choice(["mlx-lm", "mlx-vlm", "transformers", "vllm", "sglang", "twin"]),
        help="What loads and runs the folder; twin: llama.cpp, as a GGUF with the same numbers.  [default: "
        "mlx-lm for MLX, transformers for what it reads, vllm where only --runtime-python is given]",
    ),
)
"""Which runtime proves a folder, and where it is installed."""


twin_option = click.option(
    "--twin/--no-twin",
    default=True,
    show_default=True,
    help="Run a folder for which there is no runtime here as a GGUF with the same numbers, which is made "
    "for that and removed.",
)


measure_option = click.option(
    "--measure",
    type=Whole(0, 1 << 30),
    default=2048,
    show_default=True,
    metavar="TOKENS",
    help="Held-out tokens on which artifacts are compared with the source, layer by layer: divergence, "
    "and the MTP head's acceptance beside the source's. 0 leaves it out.",
)
