"""Captions: the file that is handed in, the references, and scores of the one against the other."""

import logging
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from beit3_vqa.data.predictions import number_or_text, write_json_rows
from beit3_vqa.data.types import Prediction
from beit3_vqa.errors import InputError, first_line
from beit3_vqa.runtime.files import is_text, read_json

logger = logging.getLogger(__name__)

MAX_REFERENCES = 2_000_000_000  # bytes
References = Mapping[str, Sequence[str]]
# What pycocoevalcap leaves out of a sentence after the Penn Treebank's tokenizer.
_BRACKETS = {f"-{side}{kind}B-" for side in "LR" for kind in "RC"}
_PUNCTUATION = _BRACKETS | {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_JAR = "stanford-corenlp-3.4.1.jar"
_SECONDS = 600  # that Java may take
SPICE = (
    "SPICE isn't computed: it needs Java 8 and models that pycocoevalcap downloads. Its COCOEvalCap takes the file of "
    "captions and the file of references as they are."
)


def write_captions(predictions: Sequence[Prediction], path: Path) -> Path:
    """Write the result file of upstream, COCO and nocaps: `[{"image_id": ..., "caption": ...}, ...]`."""
    return write_json_rows([{"image_id": number_or_text(p.id), "caption": p.answer} for p in predictions], path)


def read_references(path: Path) -> dict[str, list[str]]:
    """Return image id -> captions of a file in COCO's format; InputError if it isn't one."""
    content = read_json(path, MAX_REFERENCES)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise InputError(f'{path} has no list "annotations": is it a file of references in COCO\'s format?')
    found: dict[str, list[str]] = {}
    problems = []
    for place, annotation in enumerate(annotations, start=1):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if type(image_id) not in (int, str) or not is_text(annotation.get("caption")):
            problems.append(f"{path}, annotation {place}: must have an image_id and a caption")
            continue
        found.setdefault(str(image_id), []).append(annotation["caption"])
    if problems:
        raise InputError.of_problems(f"{path} holds no references that can be used:", problems)
    return found


def require_scorer() -> None:
    """Raise InputError if the package that scores captions is missing."""
    if find_spec("pycocoevalcap") is None:
        raise InputError('captions are scored with pycocoevalcap: pip install "beit3_vqa[caption]".')


def score_captions(
    captions: Mapping[str, str], references: References, *, meteor: bool = False
) -> dict[str, float | str]:
    """Return CIDEr, BLEU-1 to 4 and ROUGE-L, times 100, by pycocoevalcap.

    Published numbers rest on the Penn Treebank's tokenizer, which is a Java program. Without Java, words are runs of
    letters and digits. `tokenizer` says which it was: scores by one can't be compared with scores by the other.

    Args:
        captions: image id -> caption.
        references: image id -> captions by people, at least one for each id of `captions`.
        meteor: METEOR too, if there is Java; it takes longer than all others.

    Raises:
        InputError: pycocoevalcap isn't there, or an image has no reference.
    """
    require_scorer()
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    lacking = [image for image in captions if not references.get(image)]
    if lacking:
        raise InputError(f"there is no reference caption for image {', '.join(lacking[:5])}; prepare the data again.")
    images = list(captions)
    counts = [len(references[image]) for image in images]
    # All texts at once, so that Java starts once.
    texts = [captions[image] for image in images] + [text for image in images for text in references[image]]
    tokenized, tokenizer = tokenize(texts)
    given = {image: [text] for image, text in zip(images, tokenized, strict=False)}
    rest = iter(tokenized[len(images) :])
    truths = {image: [next(rest) for _ in range(count)] for image, count in zip(images, counts, strict=True)}
    bleu, _ = Bleu(4).compute_score(truths, given, verbose=0)
    scores = {
        "CIDEr": Cider().compute_score(truths, given)[0],
        **{f"Bleu_{n}": score for n, score in enumerate(bleu, start=1)},
        "ROUGE_L": Rouge().compute_score(truths, given)[0],
    }
    if meteor and tokenizer == "ptb":
        scores["METEOR"] = _meteor(truths, given)
    return {**{name: 100.0 * float(score) for name, score in scores.items()}, "tokenizer": tokenizer}


def tokenize(texts: Sequence[str]) -> tuple[list[str], str]:
    """Return texts as lower-case words with blanks between and no punctuation, and the tokenizer: `ptb` or `plain`."""
    lines = [" ".join(text.split()) for text in texts]
    java = shutil.which("java")
    if java:
        try:
            return _penn_treebank(java, lines), "ptb"
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            logger.warning(f"Java's tokenizer failed ({first_line(error)}); words are split plainly instead")
    return [" ".join(re.findall(r"\w+(?:'\w+)?", line.lower())) for line in lines], "plain"


def _penn_treebank(java: str, lines: Sequence[str]) -> list[str]:
    import pycocoevalcap.tokenizer

    jar = Path(next(iter(pycocoevalcap.tokenizer.__path__))) / _JAR
    command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    given = "".join(f"{line}\n" for line in lines).encode()
    done = subprocess.run(command, input=given, capture_output=True, check=True, timeout=_SECONDS)
    found = done.stdout.decode().split("\n")[: len(lines)]
    if len(found) < len(lines):
        raise ValueError(f"{len(lines)} lines went in, {len(found)} came out")
    return [" ".join(word for word in line.split() if word not in _PUNCTUATION) for line in found]


def _meteor(truths: References, given: References) -> float:
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        return float(meteor.compute_score(truths, given)[0])
    finally:
        # It leaves the pipes of its Java process open.
        for pipe in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            pipe.close()
