"""The commands. Each parses, calls one function, prints what was written and what to type next."""

import io
import logging
import os
import sys
import time
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from cyclopts.config import Dict
from rich.console import Console

from atnet.config import SECTIONS, plainly, read_yaml
from atnet.errors import AtnetError, ConfigError

app = App(
    name="atnet",
    help="AT-Net: light image classifiers, convolution first, attention after.",
    version=lambda: __import__("atnet").__version__,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
app.command(
    "atnet.cli.train:train",
    help="Train a classifier: `atnet train --data FOLDER`, or `atnet train recipes/digits.yaml --epochs 5`.",
)
app.command("atnet.cli.probe:probe", help="Fit a logistic regression on a frozen network's features, in seconds.")
app.command("atnet.cli.pretrain:pretrain", help="Learn from images without labels what a teacher sees in them.")
app.command("atnet.cli.teach:teach", help="Ask teachers about a training's crops once, for all trainings on them.")
app.command("atnet.cli.eval:evaluate", name="eval", help="Evaluate weights on labelled images.")
app.command("atnet.cli.predict:predict", help="Classify images.")
app.command("atnet.cli.explain:explain", help="Show which regions of an image a prediction depends on.")
app.command("atnet.cli.embed:embed", help="Compute embeddings, nearest neighbours and a 2-D map.")
app.command("atnet.cli.export:export", help="Export weights as an ONNX or safetensors file.")
app.command(
    "atnet.cli.publish:publish",
    help="Write weights for timm, transformers and the Hugging Face hub, or push them there.",
)
app.command("atnet.cli.serve:serve", help="Serve predictions over HTTP.")
app.command("atnet.cli.web:web", help="Write a web page that classifies images in the browser.")
app.command("atnet.cli.plan:plan", help="Estimate what a training takes on several devices.")
app.command("atnet.cli.replay:replay", help="Replay a training step that had a value that was not finite.")
app.command("atnet.cli.report:report", help="Generate an HTML report of a run.")
app.command("atnet.cli.compare:compare", help="Compare runs.")
app.command("atnet.cli.bench:bench", help="Benchmark models side by side, timm's among them.")
app.command("atnet.cli.blocks:blocks", help="Benchmark AT-Net's building blocks at each stride and width.")
app.command("atnet.cli.study:study", help="Run a study: many short trainings of one recipe with changes.")
app.command("atnet.cli.sizes:sizes", help="Print the size table, with parameters counted at 1000 classes.")
app.command("atnet.cli.weights:weights", help="List the weights that are on this machine.")
app.command("atnet.cli.table:table", help="Generate the published table from the records under results/.")
app.command(
    "atnet.cli.doctor:doctor", help="Check a dataset for corrupt files, duplicates, leakage and label problems."
)
app.command("atnet.cli.pack:pack", help="Pack any image source into tar shards with checksums.")
app.command("atnet.cli.env:env", help="Tell what AT-Net runs on, for the report of a bug.")
app.command("atnet.cli.digits:digits", help="Write the embedded digits as folders of images.")
app.register_install_completion_command(show=False)


NO_RECIPES = (".zip", ".tar", ".tgz", ".gz", ".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""How sources of images end that are no folders."""


def _expand(words: list[str]) -> list[str]:
    """`--data FOLDER` is short for `--data.source FOLDER`, and so is a folder or archive in a recipe's place; other
    sections take no value of their own.

    The parser would take any section's bare name for all of the section, and so drop what the recipe
    says of it.
    """
    command, *rest = words
    first = rest[0] if rest else ""
    if first == "digits" or (
        not first.startswith("-") and (os.path.isdir(first) or first.lower().endswith(NO_RECIPES))
    ):
        words = [command, "--data.source", *rest]
    expanded = []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--data":
            word = f"--data.source{equals}{value}"
        elif name in {f"--{section}" for section in SECTIONS}:
            raise ConfigError(f"{name} is a section of options: give {name}.NAME; `atnet train --help` lists them")
        expanded.append(word)
    return expanded


def _layer(words: list[str]) -> None:
    """Makes the recipe named on a command the layer below its options, and what suits weights and images the next."""
    app.config = ()
    if "--help" in words or "-h" in words:
        return
    _, bound, _ = app.parse_args(words)
    recipe = bound.arguments.get("recipe")
    if recipe is not None:
        values = read_yaml(recipe)
        named = {name.replace("_", "-") for name in bound.signature.parameters}
        foreign = next((name for name in (one.replace("_", "-") for one in values) if name in named), None)
        if foreign is not None:
            raise ConfigError(f"{recipe}: {foreign} is not for a recipe to say: give --{foreign} to the command")
        app.config = (Dict({words[0]: values}, source=str(recipe)),)
        _, bound, _ = app.parse_args(words)
    config = bound.arguments.get("config")
    if config is not None:
        from atnet.training.transfer import defaults_of

        app.config = (*app.config, Dict({words[0]: defaults_of(config)}, source="defaults"))


ALONE = ("train", "plan", "pretrain", "teach", "study", "bench", "blocks", "replay")
"""Commands that want the processor for themselves: their threads wait busily for each other."""


def _share_processor() -> None:
    """Threads of OpenMP wait for each other a thousand rounds at most, then sleep, unless the user says otherwise.

    By default they wait busily, and where another program has one of the cores all wait for the thread that it holds
    up: an answer of 20 ms takes a second. Before torch is loaded, which reads this once.
    """
    if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}


began = 0.0
"""When the command began, on the monotonic clock: before torch was loaded."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; ends with exit code 2 and one line on what a user can mend, 128 + number on a signal.

    Every command takes --quiet, which leaves out progress and what is told on the way, and --debug, which shows the
    traceback of such an error.
    """
    global began
    began = time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("atnet").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):  # a terminal without our letters shows others, and no traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug, quiet = "--debug" in words, "--quiet" in words
    words = [word for word in words if word not in ("--debug", "--quiet")]
    if quiet:
        logging.getLogger("atnet").setLevel(logging.WARNING)
    if words and words[0] not in ALONE:
        _share_processor()
    try:
        if words[:1] in (["train"], ["plan"], ["teach"], ["pretrain"]):
            words = _expand(words)
            _layer(words)
        app(words)
    except BrokenPipeError:  # the reader of our output, `head` for example, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (AtnetError, CycloptsError, OSError) as error:
        if debug:
            raise
        said = plainly(error) if isinstance(error, CycloptsError) else str(error)
        if isinstance(error, OSError):  # of the disk, or a folder's permissions
            place = f"{error.filename}: " if error.filename else ""
            said = f"{place}{error.strerror or error}; mend that, make room, or choose another place"
        Console(stderr=True).print(f"atnet: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        said = str(stopped) or "stopped"
        Console(stderr=True).print(f"\natnet: {said}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        sys.exit(getattr(stopped, "exit_code", 130))
