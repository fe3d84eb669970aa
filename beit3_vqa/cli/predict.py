"""`beit3-vqa predict`: answer one question about one image."""

import argparse
from typing import Any


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("predict", help="answer one question about one image")
    if not build:
        return
    parser.set_defaults(function=run)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="one of your checkpoints")
    parser.add_argument("--image", required=True, metavar="FILE", help="the image")
    parser.add_argument("--question", required=True, metavar="TEXT", help="the question")
    parser.add_argument("--choices", nargs="+", default=[], metavar="TEXT", help="the options, in order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: auto)")
    parser.add_argument("--sentencepiece_model", default="", metavar="FILE", help="default: beside the checkpoint")
    parser.add_argument("--pretrained", default="", metavar="FOLDER", help="CLIP; default: the one it was trained on")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from beit3_vqa.engine.predictor import load
    from beit3_vqa.errors import one_line

    model = load(parsed.checkpoint, parsed.device, parsed.sentencepiece_model, parsed.pretrained, parsed.precision)
    prediction = model.predict(parsed.image, parsed.question, parsed.choices)
    texts = dict(zip(prediction.probabilities, parsed.choices, strict=False))
    for answer, probability in prediction.probabilities.items():
        chosen = "<- " if answer == prediction.answer else ""
        print(f"{one_line(answer)}  {probability:6.1%}  {chosen}{texts.get(answer, '')}".rstrip())
    return 0
