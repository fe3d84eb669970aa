"""Upload an exported folder to the Hugging Face hub."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from beit3_vqa.errors import InputError, first_line

_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}")
_LOGIN = (
    "Make one with the right to write at https://huggingface.co/settings/tokens, then `hf auth login`, or set HF_TOKEN."
)


def check_hub(repository: str, public: bool) -> None:
    """Check before any work that an upload may succeed; an empty `repository`: nothing will be uploaded.

    Raises:
        InputError: no such name, no token, or huggingface_hub isn't installed.
    """
    if not repository:
        if public:
            raise InputError("--public: says who sees what --push_to_hub uploads; give both.")
        return
    if not _NAME.fullmatch(repository):
        raise InputError(f"--push_to_hub {repository}: write OWNER/NAME, in letters, digits, '-', '_' and '.'.")
    if not _hub().get_token():
        raise InputError(f"--push_to_hub {repository}: there is no token of the hub on this machine. {_LOGIN}")


def push(folder: Path, repository: str, *, public: bool) -> str:
    """Upload a folder to a repository, which is made if it isn't there; return its address.

    Raises:
        InputError: the hub refuses, or can't be reached; the folder stays.
    """
    api = _hub().HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Upload of beit3-vqa export")
    except Exception as error:  # its own, and those of requests or httpx, as its version has it
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = {
            401: f"the hub doesn't know the token. {_LOGIN}",
            403: f"the token may not write there. {_LOGIN}",
            404: f"the token can't see such a repository or owner. {_LOGIN}",
        }.get(status or 0, f"{first_line(error)}.")
        again = f"{folder} is complete: try again with `hf upload {repository} {folder}`."
        raise InputError(f"--push_to_hub {repository}: {why} {again}") from error
    return str(address)


def _hub() -> Any:
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(f"--push_to_hub needs huggingface_hub ({error}): pip install huggingface_hub.") from error
