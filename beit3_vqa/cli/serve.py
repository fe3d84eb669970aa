"""`beit3-vqa serve`: a page and an HTTP interface to ask trained models."""

import argparse
from typing import Any

from beit3_vqa.errors import InputError


def add(commands: Any, build: bool) -> None:
    """Adds the command to the parser; its options only if it is to be built."""
    parser = commands.add_parser("serve", help="a page, and an HTTP interface, to ask a model about images")
    if not build:
        return
    parser.set_defaults(function=run)
    many = "one of your checkpoints, or several that vote by the mean of their probabilities"
    parser.add_argument("--checkpoint", required=True, nargs="+", metavar="FILE", help=many)
    others = "address to listen on; another than this machine's own lets others in, with a token (default: 127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=others)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    brings = "what each request must bring (default: made, and printed, where --host lets others in; else none)"
    parser.add_argument("--token", default="", metavar="TEXT", help=brings)
    together = "most questions that are answered in one pass (default: 8)"
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help=together)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16 (default: auto)")
    parser.add_argument("--sentencepiece_model", default="", metavar="FILE", help="default: beside the checkpoint")
    parser.add_argument("--pretrained", default="", metavar="FOLDER", help="CLIP; default: the one it was trained on")


def run(parsed: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    if not 0 <= parsed.port <= 65535:
        raise InputError(f"--port {parsed.port}: must lie between 0 and 65535.")
    if not 1 <= parsed.batch_size <= 1024:
        raise InputError(f"--batch_size {parsed.batch_size}: must lie between 1 and 1024.")
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f'`beit3-vqa serve` needs {error.name}: pip install "beit3_vqa[serve]".') from error
    from beit3_vqa.apps.serve.server import serve

    serve(
        parsed.checkpoint,
        host=parsed.host,
        port=parsed.port,
        device=parsed.device,
        precision=parsed.precision,
        batch_size=parsed.batch_size,
        sentencepiece_model=parsed.sentencepiece_model,
        pretrained=parsed.pretrained,
        token=parsed.token,
    )
    return 0
