"""Make a tiny tokenizer on disk, so that AIPerf runs without downloading one.

    python examples/make_tokenizer.py tok
    aiperf profile --tokenizer ./tok ...

It is a byte-level BPE trained on the few lines below: of no use to a model, but it turns any text
into tokens and back. Give AIPerf a relative path, and leave HF_HUB_OFFLINE unset: with it, AIPerf
refuses a path.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

# The second paragraph holds the words of mock_llm_server.py: each of them becomes one token.
TEXT = """
A benchmark of a language model server sends prompts and measures when the answers come.
It runs in phases: a warm-up fills the caches, then profiling counts every request.
Shall I compare thee to a summer's day? Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May, and summer's lease hath all too short a date.

 a bus carries phases and records to every process that asks while the benchmark runs on
 undisturbed measuring throughput and latency token by token and nothing is lost uncounted
"""

VOCABULARY_SIZE = 1024
MARKER = "tokenizer.json"


def make_tokenizer(directory: Path) -> Path:
    """Make the tokenizer in ``directory`` unless it is there already, and return ``directory``.

    It is made beside its place and moved there whole, so that two callers at a time do not disturb
    each other.

    Raises:
        OSError: The directory cannot be written, or holds something else.
    """
    if (directory / MARKER).exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _train_into(aside)
        aside.chmod(0o755)  # mkdtemp makes it private
        aside.rename(directory)
    except OSError:
        # A directory cannot be renamed over one with files in it: somebody else was quicker.
        if not (directory / MARKER).exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return directory


def _train_into(directory: Path) -> None:
    # Imported here because it takes seconds, and most calls find the tokenizer made.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<s>", "</s>"],
        # All 256 bytes, so that no text is unknown.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",  # noqa: S106 - a token of text, no password; so the others
        eos_token="</s>",  # noqa: S106
        pad_token="</s>",  # noqa: S106
    )
    fast.save_pretrained(directory)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make a tiny tokenizer for AIPerf.")
    parser.add_argument("directory", type=Path, help="where to make it")
    directory = parser.parse_args(argv).directory
    try:
        print(make_tokenizer(directory))
    except OSError as exc:
        print(f"make_tokenizer: cannot make {directory}: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
