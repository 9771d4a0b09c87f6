"""`lora-sweep generate` and `lora-sweep compare`: what the base model and adapters of a study answer, side by side."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from lora_core.errors import UserError
from reports.command import study_folder
from sweeps import interrupts
from sweeps.client import Child, WorkerDied
from sweeps.pick import of_trial
from sweeps.protocol import Answered, Ask
from sweeps.standing import standing

MAX_TOKENS = 100


class Answerer(Child):
    """It answers prompts."""

    title = "The answering process"

    def answers(self, ask: Ask) -> Iterator[list[str]]:
        """By prompt, with one adapter after the other."""
        self.send(ask)
        for _ in ask.adapters:
            message = self._receive()
            assert isinstance(message, Answered)
            yield message.answers


def generate(argv: list[str]) -> int:
    """Answers prompts with the base model and one adapter. Returns the exit code: 1 if the process that does died."""
    parser = _parser("generate", "What the base model and an adapter answer, side by side.")
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="what to answer")
    parser.add_argument("--trial", metavar="TRIAL", help="number or name of a trial (default: the winner)")
    given = parser.parse_args(argv)
    return _answer(given, [given.trial], given.prompt)


def compare(argv: list[str]) -> int:
    """The same with several adapters, and the prompts of a file."""
    parser = _parser("compare", "What the base model and several adapters answer, side by side.")
    parser.add_argument("trial", nargs="+", metavar="TRIAL", help="numbers or names of trials")
    parser.add_argument(
        "--prompts", type=Path, required=True, metavar="FILE", help="a text file, a prompt on each line"
    )
    given = parser.parse_args(argv)
    return _answer(given, list(dict.fromkeys(given.trial)), _lines(given.prompts))


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"lora-sweep {command}", description=description)
    parser.add_argument("study", metavar="STUDY", help="its name; train/NAME for a single run")
    parser.add_argument(
        "--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="the length of an answer (default: %(default)s)"
    )
    parser.add_argument("--output-dir", default="outputs", metavar="DIR", help="where studies lie (default: outputs)")
    return parser


def _lines(file: Path) -> list[str]:
    try:
        prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {file} cannot be read: {error}") from None
    if not prompts:
        raise UserError(f"--prompts {file} holds no prompts: expected one on each line.")
    return prompts


def _answer(given: argparse.Namespace, trials: Sequence[str | None], prompts: list[str]) -> int:
    if given.max_tokens < 1:
        raise UserError(f"--max-tokens {given.max_tokens}: expected 1 or more.")
    study = standing(study_folder(Path(given.output_dir), given.study))
    picked = [of_trial(study, trial) for trial in trials]
    adapters = [None, *(str(each.folder) for each in picked)]
    model, config = study.record.model, study.record.config
    bits, size = config.get("quantization"), config.get("quantization_group_size")
    ask = Ask(model, bits, size, adapters, prompts, given.max_tokens)
    try:
        with interrupts.handled(), Answerer() as child:
            answers = list(child.answers(ask))
    except WorkerDied as death:
        print(f"lora-sweep: {death}", file=sys.stderr)
        return 1
    names = ["base", *(each.name for each in picked)]
    blocks = zip(prompts, zip(*answers, strict=True), strict=True)
    print("\n\n".join(_block(prompt, dict(zip(names, row, strict=True))) for prompt, row in blocks))
    return 0


def _block(prompt: str, answers: dict[str, str]) -> str:
    """The prompt, and an answer on each line; those of several lines go on below where they began."""
    width = max(map(len, answers))
    onward = "\n" + " " * (width + 4)
    rows = [f"  {name:<{width}}  {onward.join(text.strip().splitlines())}" for name, text in answers.items()]
    return "\n".join([prompt, *rows])
