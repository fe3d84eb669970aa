"""Turn text into token ids and back: SentencePiece pieces under XLM-R's ids.

XLM-R's (fairseq's) ids put `<s>`, `<pad>`, `</s>`, `<unk>` at 0..3, SentencePiece's own put `<unk>`, `<s>`, `</s>`
at 0..2; every piece from 3 on is moved up by one, and `<mask>` is added at the end. Ids equal those of transformers 4's
`XLMRobertaTokenizer`, with one difference on purpose: that one turns `</s>` or `<mask>` inside a question into the
special id. Here such a question is ordinary text (what transformers calls `split_special_tokens=True`)."""

import hashlib
import io
import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_vqa.errors import InputError, plural
from beit3_vqa.runtime.files import missing, replacing, require_bounded

if TYPE_CHECKING:
    from torch import Tensor

BOS_ID, PAD_ID, EOS_ID, UNK_ID = 0, 1, 2, 3

# `<pad>` in front and `<mask>` behind are the two ids that aren't SentencePiece pieces.
EXTRA_IDS = 2

# SentencePiece's first three, unless it was told otherwise. XLM-R's ids assume them.
CONTROL_PIECES = ("<unk>", "<s>", "</s>")

WORD_START = "\u2581"  # what SentencePiece writes for a space

MAX_MODEL = 100_000_000  # bytes; beit3.spm has about one

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A SentencePiece model read from a file. A pickle holds the model, so the file isn't read again.

    Args:
        path: a SentencePiece model such as beit3.spm, whose first pieces are `<unk>`, `<s>`, `</s>`.

    Attributes:
        path: the file it was read from.
        bos_id, pad_id, eos_id, unk_id: 0, 1, 2, 3.
        mask_id: the last id.
        sha256: SHA-256 of that file, in hexadecimal digits.
        vocab_size: the number of ids, 64,002 for beit3.spm; an embedding needs at least as many rows.

    Raises:
        InputError: there is no such file, or it is no SentencePiece model with those first pieces.
    """

    bos_id, pad_id, eos_id, unk_id = BOS_ID, PAD_ID, EOS_ID, UNK_ID

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._model, self.sha256 = _load(self.path)
        self.vocab_size: int = self._model.get_piece_size() + EXTRA_IDS
        self.mask_id = self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without `<s>` and `</s>`; no text gives a special id other than `<unk>`."""
        # With a list of one text SentencePiece would start a pool of threads, which takes 25 times as long.
        return _ids(self._model.encode(_encodable(text), out_type=int))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, as `encode` does; faster than a call for each."""
        # One thread: a batch is encoded in a millisecond, and DataLoader workers already fill the cores.
        pieces = self._model.encode([_encodable(text) for text in texts], out_type=int, num_threads=1)
        return [_ids(row) for row in pieces]

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """Return the text of each id, with a space before what begins a word; joined they are the text again.

        A special id gives an empty text, `<unk>` gives SentencePiece's "⁇".
        """
        return [self._piece(token_id) for token_id in ids]

    def _piece(self, token_id: int) -> str:
        if UNK_ID < token_id < self.mask_id:
            piece: str = self._model.id_to_piece(token_id - 1)
            return piece.replace(WORD_START, " ")
        return "⁇" if token_id == UNK_ID else ""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`, skipping ids without text: specials, and an embedding's spare rows.

        `<unk>` becomes SentencePiece's " ⁇ ".
        """
        spoken = [int(token_id) for token_id in ids if UNK_ID <= token_id < self.mask_id]
        text: str = self._model.decode([0 if token_id == UNK_ID else token_id - 1 for token_id in spoken])
        return text


def pad_batch(
    sequences: Sequence[Sequence[int]], pad_id: int = PAD_ID, length_step: int = 1
) -> "tuple[Tensor, Tensor]":
    """Pad B sequences on the right to L tokens, the longest of them rounded up to a multiple of `length_step`.

    Returns:
        ids: int64 (B, L).
        padding_mask: int64 (B, L), 1 at the padding and 0 at tokens, whatever their ids.
    """
    import torch  # seconds, which `prepare` and its --help do without

    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    longest = max(map(len, sequences), default=0)
    longest += -longest % length_step
    rows = [[*sequence, *[pad_id] * (longest - len(sequence))] for sequence in sequences]
    ids = torch.tensor(rows, dtype=torch.int64).reshape(len(sequences), longest)
    padding_mask = (torch.arange(longest) >= lengths[:, None]).long()
    return ids, padding_mask


def train_tokenizer(texts: Iterable[str], vocab_size: int, path: str | os.PathLike[str]) -> Tokenizer:
    """Train a SentencePiece model (byte-pair encoding) on `texts`, for users without beit3.spm; write it to `path`.

    The same texts in the same order give the same file, byte for byte. Every character of the texts gets a piece,
    Korean and other large scripts included.

    Args:
        texts: the questions and answers that the tokenizer is for; blank ones are skipped.
        vocab_size: the number of ids, specials included. Few texts give fewer: see `Tokenizer.vocab_size`.
        path: the file to write; an existing one is replaced whole or not at all.

    Returns:
        The tokenizer, read from `path`.

    Raises:
        InputError: there is no text, `vocab_size` is too small for the characters in it, or `path` can't be written.
    """
    path = Path(path)
    texts = [_encodable(text) for text in texts if text.strip()]
    if not texts:
        raise InputError(f"There is no text to train the tokenizer {path} on; every question is empty.")
    if vocab_size < EXTRA_IDS + len(CONTROL_PIECES):
        raise InputError(f"A tokenizer of {vocab_size} ids can't be trained; ask for a few thousand.")
    model = _train(texts, vocab_size - EXTRA_IDS, path)
    with replacing(path) as file:
        file.write(model)
    return Tokenizer(path)


def _train(texts: list[str], pieces: int, path: Path) -> bytes:
    """Return the bytes of a SentencePiece model; InputError if the texts don't make one."""
    import sentencepiece

    model = io.BytesIO()
    try:
        # No seed is needed: chance enters only where SentencePiece samples sentences, and all are used here.
        # "bpe", not "unigram": a unigram piece has to occur in two different words, so text of few words (easy-VQA
        # has 32) is cut almost into letters, twice as many tokens. Where words are many the two come out alike.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            # In bytes. Longer texts would be dropped without a word; less than 10 is refused.
            max_sentence_length=max(10, 1 + max(len(text.encode()) for text in texts)),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        if needed:
            raise InputError(
                f"A tokenizer of {pieces + EXTRA_IDS} ids is too small: the characters of the texts alone take "
                f"{int(needed[1]) + EXTRA_IDS}; ask for that many or more."
            ) from error
        raise InputError(
            f"The tokenizer {path} can't be trained; are there letters in the {plural(len(texts), 'text')}? "
            f"SentencePiece says: {error}"
        ) from error
    return model.getvalue()


def _load(path: Path) -> tuple[Any, str]:
    """Return the SentencePieceProcessor of a model file and the file's SHA-256.

    Raises:
        InputError: it can't be read, or lacks the first pieces that XLM-R's ids assume.
    """
    import sentencepiece

    require_bounded(path, MAX_MODEL)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{missing('tokenizer', path)} `beit3-vqa download beit3.spm` fetches BEiT-3's; "
            "`beit3-vqa prepare ... --train_tokenizer N` trains one on your own questions."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"The tokenizer {path} can't be read: {error}") from error

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load_from_serialized_proto(content)
    except RuntimeError as error:
        raise InputError(
            f"{path} ({len(content):,} bytes) is not a SentencePiece model; give a whole one, such as beit3.spm."
        ) from error
    if (
        model.get_piece_size() < len(CONTROL_PIECES)
        or model.unk_id() != 0
        or not (model.is_control(1) and model.is_control(2))
    ):
        raise InputError(
            f"{path} is no model for XLM-R's ids: its first pieces must be {', '.join(CONTROL_PIECES)}, as "
            "SentencePiece trains them unless told otherwise; give beit3.spm or one that `beit3-vqa prepare` trained."
        )
    try:
        model.id_to_piece(list(range(model.get_piece_size())))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: some of its pieces aren't UTF-8; copy or download it again.") from error
    return model, hashlib.sha256(content).hexdigest()


def _ids(pieces: list[int]) -> list[int]:
    """Turn SentencePiece's numbers into XLM-R's ids."""
    return [piece + 1 if piece else UNK_ID for piece in pieces]


def _encodable(text: str) -> str:
    """Replace each half of a surrogate pair, which UTF-8 can't hold, by U+FFFD."""
    return _LONE_SURROGATE.sub("\ufffd", text)


# Words of a caption are masked for a model that learns to fill them in.

AS_MASK, AS_IT_IS = 0.8, 0.1  # shares of the chosen words; the rest become a random word


def mask_words(
    ids: Sequence[int], rng: random.Random, probability: float, mask_id: int, vocab_size: int
) -> tuple[list[int], list[int]]:
    """Mask some words of a text, as upstream does.

    round(n * probability) of the n tokens are chosen, at least one. `<s>` is never chosen; `</s>` may be, since a
    captioner must learn to stop. Of them 80 % become `<mask>`, 10 % stay, and 10 % become a random word (Devlin et al.
    2019, "BERT").

    Args:
        ids: ids of `<s> text </s>`, at least two.
        rng: the only source of randomness.
        probability: share of the tokens that is chosen.
        mask_id: id of `<mask>`.
        vocab_size: number of ids of the tokenizer; random words are any from `<unk>` on.

    Returns:
        the ids as the model sees them, and the positions that were chosen, in order.
    """
    count = min(max(1, int(len(ids) * probability + 0.5)), len(ids) - 1)
    chosen = sorted(rng.sample(range(1, len(ids)), count))
    masked = list(ids)
    for position in chosen:
        kind = rng.random()
        if kind < AS_MASK:
            masked[position] = mask_id
        elif kind >= AS_MASK + AS_IT_IS:
            masked[position] = rng.randrange(UNK_ID, vocab_size)
    return masked, chosen
