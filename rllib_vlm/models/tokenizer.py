"""A small tokenizer, trained in a second on the texts a tiny model will read and write.

A model of one or two million parameters cannot afford the 150,000 embeddings of a released
tokenizer, nor to spell `move_ahead` in three pieces. This one makes every frequent word one token,
spells the rest in sub-words and bytes, so that any text comes back unchanged. A small number after
a blank is one token: "mug left 60 10" then is a chain of words of which each has few likely
successors in a prompt, so a small model copies it by looking up the word before.

Texts are cut before tokens are made: a chat role with its line break, a word (with the blank
before it, or the comma: a list of actions has one token for each), up to three digits (with the
blank), a run of punctuation, a line break, a run of blanks.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rllib_vlm.errors import ModelError

_EXAMPLE = "my_package:corpus/corridor.txt"  # of a corpus beside a simulator

# The names the Qwen-VL families give these tokens; the order fixes their ids, from 0.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Tags of the answer formats: one ordinary token each, which a model samples and text keeps.
ANSWER_TAGS = tuple(
    f"<{slash}{name}>"
    for name in ("think", "observation", "reasoning", "prediction", "answer")
    for slash in ("", "/")
)

_PIECES = (
    r"(?:system|user|assistant)\n"
    r"|[ ,]?[A-Za-z_]+"
    r"| ?[0-9]{1,3}"
    r"| ?[^\sA-Za-z0-9_]+"
    r"|\n"
    r"|[^\S\n]+"
)

# ChatML with no line break between messages. A user's pictures stand where its content says.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTokens:
    """The special tokens of a family's conversations, and its template."""

    tokens: tuple[str, ...]  # ids from 0, in this order
    beyond: tuple[str, ...] = ()  # ids behind all others, which an output layer may leave out
    begin: str | None = None  # of a conversation
    end: str  # of a message
    pad: str
    template: str


CHATML = ChatTokens(tokens=SPECIAL_TOKENS, end="<|im_end|>", pad="<|endoftext|>", template=CHAT_TEMPLATE)


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int = 1280,
    words: Sequence[str] = (),
    numbers: int = 200,
    tags: Sequence[str] = ANSWER_TAGS,
    chat: ChatTokens = CHATML,
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer whose vocabulary also holds whole words.

    Half of what 256 bytes, the special tokens and the tags leave goes to whole words: first
    `words` (alone, after a blank and after a comma), then the words of `texts`, the most frequent first. BPE
    merges fill the rest, larger numbers are spelt digit by digit. The same texts in any order give the same tokenizer.

    Args:
        texts: what the model will read and write.
        vocab_size: size of the whole vocabulary; it is smaller where `texts` has no more to merge.
        words: must be one token each, whatever their frequency (the names of actions).
        numbers: the whole numbers below this are one token each after a blank.
        tags: answer tags that become one token each.
        chat: the family's special tokens; those beyond the others are not counted in `vocab_size`.

    Raises:
        ModelError: `vocab_size` does not hold the bytes, the special tokens, the tags and `words`.
    """
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    texts = sorted(texts)
    counts = _count_pieces(texts, splitter, tags)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A digit is one token with and without a blank before it, for larger numbers.
    wanted = [p for digit in "0123456789" for p in _pieces(splitter, (digit, " " + digit))]
    wanted += [p for word in words for p in _pieces(splitter, (word, " " + word, "," + word))]
    wanted += _pieces(splitter, [f" {n}" for n in range(10, numbers)])
    fixed = list(dict.fromkeys([*chat.tokens, *tags, *alphabet, *wanted]))
    if len(fixed) > vocab_size:
        raise ModelError(
            f"a vocabulary of {vocab_size} cannot hold the {len(fixed)} tokens that bytes, special tokens,"
            f" tags and {len(words)} given words need; set vocab_size to {len(fixed) + 256} or more"
        )
    frequent = sorted(
        (p for p in counts if len(p) > 2 and not p[-1].isdigit()), key=lambda p: (-counts[p], p)
    )
    known = set(fixed)
    whole = [p for p in frequent if p not in known][: (vocab_size - len(fixed)) // 2]
    merges = _merges(counts, alphabet, vocab_size - len(fixed) - len(whole))

    tokens = dict.fromkeys([*fixed, *whole])
    kept: list[tuple[str, str]] = []
    for left, right in merges:
        joined = left + right
        if joined not in tokens and len(tokens) >= vocab_size:
            break
        tokens[joined] = None
        kept.append((left, right))
    vocab = {token: i for i, token in enumerate(tokens)}

    # ignore_merges: a piece that is itself in the vocabulary is one token without any merging.
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=kept, ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    special = (*chat.tokens, *chat.beyond)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in tags])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=chat.pad,
        eos_token=chat.end,
        **({} if chat.begin is None else {"bos_token": chat.begin}),
        additional_special_tokens=[t for t in special if t != chat.pad],
        chat_template=chat.template,
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 20,
    )


def compact_corpus(texts: Iterable[str], *, repeats: int = 2) -> list[str]:
    """The shortest lines of `texts` in which every word still stands `repeats` times (or as often as it did).

    Makes a corpus file of a few kilobytes out of the prompts and answers of many episodes::

        lines = compact_corpus(text for episode in episodes for text in episode_texts(episode))
        Path("household.txt").write_text("\\n".join(lines) + "\\n")
    """
    lines = {line.strip() for text in texts for line in text.splitlines() if line.strip()}
    have: Counter[str] = Counter()
    kept = []
    for line in sorted(lines, key=lambda line: (len(line), line)):
        words = re.findall(_PIECES, re.sub("[0-9]", "", line))
        if any(have[word] < repeats for word in words):
            have.update(words)
            kept.append(line)
    return kept


def load_corpus(name: str = "household") -> tuple[str, ...]:
    """Lines of a corpus: of one of this package's by its name, or of a text file in an installed package.

    `my_package:corpus/corridor.txt` is such a file, beside the simulator that says what it holds.

    Raises:
        ModelError: there is no such corpus, package or file, or the file holds no text.
    """
    if not isinstance(name, str):
        raise ModelError(f"corpus is {name!r}; give a name ({', '.join(_corpora())}) or {_EXAMPLE!r}")
    return _read_corpus(name)


@cache
def _read_corpus(name: str) -> tuple[str, ...]:
    if ":" in name:
        package, _, path = name.partition(":")
        what = f"corpus {name!r}: no text file {path!r} in a package {package!r}"
        if ".." in path.split("/"):
            raise ModelError(f"{what}: '..' leads out of it")
        try:
            file = resources.files(package).joinpath(*path.split("/"))
            if not file.is_file():  # a pipe would keep us waiting
                raise ModelError("it is no file")
            text = file.read_text(encoding="utf-8")
            if "\0" in text:
                raise ModelError("it holds zero bytes")
        except (Exception, SystemExit) as error:  # whatever a package of the user's does while it is imported
            raise ModelError(f"{what}: {error}") from error
        if not text.strip():
            raise ModelError(f"{what}: the file is empty")
        return tuple(text.splitlines())
    if name not in _corpora():
        raise ModelError(
            f"no corpus {name!r} comes with the package; there is {', '.join(_corpora())}, "
            f"or a text file of a package: {_EXAMPLE!r}"
        )
    own = resources.files("rllib_vlm.models").joinpath("corpus", f"{name}.txt")
    return tuple(own.read_text(encoding="utf-8").splitlines())


def _corpora() -> list[str]:
    folder = resources.files("rllib_vlm.models").joinpath("corpus")
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(".txt"))


def _pieces(splitter: pre_tokenizers.PreTokenizer, texts: Iterable[str]) -> list[str]:
    return [piece for text in texts for piece, _ in splitter.pre_tokenize_str(text)]


def _count_pieces(
    texts: Sequence[str], splitter: pre_tokenizers.PreTokenizer, tags: Sequence[str]
) -> Counter[str]:
    """How often each piece stands in the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        for tag in tags:
            text = text.replace(tag, "\n")
        counts.update(_pieces(splitter, (text,)))
    for role in ("system", "user", "assistant"):
        counts[_pieces(splitter, (f"{role}\n",))[0]] = 1 << 20
    return counts


def _merges(counts: Counter[str], alphabet: Sequence[str], size: int) -> list[tuple[str, str]]:
    """The first BPE merges of the counted pieces, about `size` of them."""
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + size, initial_alphabet=list(alphabet), show_progress=False
    )
    # Pieces are already in the byte alphabet, so the trainer gets them one by one and cuts no further.
    # Counts enter by repetition, capped: beyond it only the order of very common merges would change.
    bpe = Tokenizer(models.BPE())
    pieces = sorted(p for p in counts for _ in range(min(counts[p], 200)))
    bpe.train_from_iterator(pieces, trainer=trainer)
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
