"""`beit3-vqa serve`: a page and an HTTP interface for questions to trained models."""

import os
from dataclasses import MISSING, dataclass

from beit3_vqa.apps.serve.limits import COMPILED_SHAPES
from beit3_vqa.cli.flags import LoadOptions, command_with
from beit3_vqa.runtime.extras import import_extra
from beit3_vqa.runtime.fields import option


@dataclass(frozen=True)
class ServeOptions(LoadOptions):
    """The models that answer, and where requests are taken."""

    checkpoint: tuple[str, ...] = option(
        MISSING, "one of your checkpoints, or several that vote by the mean of their probabilities", metavar="FILE"
    )
    host: str = option(
        "127.0.0.1", "address to listen on; any but this machine's own lets other machines in, with a token"
    )
    port: int = option(8000, "port to listen on; 0 takes a free one", low=0, high=65535)
    token: str = option(
        "",
        "token that each request must send; default: if --host lets others in, one is made and printed; else none",
        metavar="TEXT",
    )
    batch_size: int = option(8, "largest number of questions answered in one pass", low=1, high=1024, metavar="N")


def run(options: ServeOptions) -> int:
    """Run the command and return its exit code."""
    for package in ("fastapi", "python_multipart", "uvicorn"):
        import_extra(package, "serve", "`beit3-vqa serve`")
    for name, number in COMPILED_SHAPES.items():  # before torch is loaded
        os.environ.setdefault(name, number)
    from beit3_vqa.apps.serve.server import serve

    serve(**vars(options))
    return 0


add = command_with(ServeOptions, "serve", "a page, and an HTTP interface, to ask a model about images", run)
