"""The data in the template: one file that loads nothing."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_vqa import __version__
from beit3_vqa.apps.report.collect import ReportRun
from beit3_vqa.apps.report.content import blocks, page_data
from beit3_vqa.apps.report.thumbnails import make_thumbnails
from beit3_vqa.data import page
from beit3_vqa.data.page import csp_sha256, read_part, read_style
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.files import file_sha256, is_file, real_path, write_text

if TYPE_CHECKING:
    import jinja2

MAX_PAGE = 29_000_000  # bytes, pictures included
MAX_PICTURES = 22_000_000  # bytes
SCRIPTS = ("charts.js", "summary.js", "gallery.js", "detail.js", "page.js")
_PACKAGE = "beit3_vqa.apps.report"
SHARED = "attention.js"  # drawn in serve's page too
# What could end a script element, or begin a comment in one. JSON knows these characters in strings alone.
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}

# Stands at the top of a report and says which runs it is of, and which splits it shows. A report of an earlier version
# has the first of the three alone.
_MARK = re.compile(rb'<meta name="beit3-vqa-runs" content="([0-9a-f]{64})(?: ([0-9a-f]{64}) ([a-z+]*))?">')
_HEAD = 10_000  # bytes that hold it


def require_own_report(path: Path, runs: Sequence[ReportRun]) -> str:
    """Raise InputError if a file is there that isn't a report of the same runs, in whatever order.

    A run is the same if its path is, or if its folder was only renamed.

    Returns:
        The split that the report there shows, if it is another one; else an empty text.
    """
    if not is_file(path):
        return ""
    try:
        with path.open("rb") as file:
            found = _MARK.search(file.read(_HEAD))
    except OSError as error:
        raise InputError(f"--output {path}: can't be read ({error.strerror}); give another name.") from error
    by_path, by_folder, split = _mark(runs).encode().split(b" ")
    if found is None or (found[1] != by_path and found[2] != by_folder):
        what = "is the report of another run" if found else "isn't a report that says which run it is of"
        raise InputError(
            f"--output {path}: the file that is there {what}. Delete or move it, or name another file, such as "
            f"--output {path.with_name(f'report-{real_path(runs[0].path).stem}.html')}."
        )
    return (found[3] or b"").decode() if found[3] != split else ""


def _mark(runs: Sequence[ReportRun]) -> str:
    """Return names for a set of runs, by their paths and by their folders, and the splits that are shown.

    The names are checksums that don't tell the paths, since a report may be sent to others.
    """
    names = (
        hashlib.sha256("\0".join(sorted(name(run.path) for run in runs)).encode()).hexdigest()
        for name in (lambda path: str(real_path(path)), _folder_name)
    )
    return " ".join([*names, "+".join(sorted({run.split for run in runs if run.split}))])


def _folder_name(path: Path) -> str:
    """Name a run's folder by what stays when it is renamed, and differs in a copy and in another run's."""
    config = path / "config.json" if path.is_dir() else path
    # A system gives a deleted folder's number to the next one: the configuration tells that one apart.
    return f"{path.stat().st_ino} {file_sha256(config) if is_file(config) else real_path(path)}"


def write_report(runs: Sequence[ReportRun], path: Path, image_root: str = "") -> Path:
    """Write the report and return its path.

    Args:
        runs: runs to show, in this order.
        path: path of the HTML file.
        image_root: see `page_data`.

    Raises:
        InputError: if jinja2 isn't installed, or the file can't be written.
    """
    template = read_template()
    data, pictures = page_data(runs, image_root)
    text = page_json(data)
    thumbnails = make_thumbnails(pictures, max(0, min(MAX_PICTURES, MAX_PAGE - len(text.encode()))))
    style, script = read_style(_PACKAGE, "style.css"), _script()
    return write_text(
        path,
        template.generate(
            title=_title(runs),
            runs=_mark(runs),
            version=__version__,
            style=style,
            style_sha256=csp_sha256(style),
            script=script,
            script_sha256=csp_sha256(script),
            data=text,
            thumbnails=[page_json(block) for block in blocks(thumbnails)],
        ),
    )


def page_json(value: object) -> str:
    """Return compact JSON that may stand in an element of the page."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def _title(runs: Sequence[ReportRun]) -> str:
    return f"{runs[0].name}: report" if len(runs) == 1 else f"{len(runs)} runs compared"


def read_template() -> "jinja2.Template":
    """Read the page's template; raise InputError if jinja2 isn't installed, which is best found out first."""
    # What it marks as safe is ours, and page_json's, which is escaped as an element of a page needs it.
    return page.read_template(_PACKAGE, "page.html.j2", "a report")


def _script() -> str:
    return (
        '(() => {\n"use strict";\n'
        + "\n".join([read_part("beit3_vqa.apps", SHARED), *(read_part(_PACKAGE, name) for name in SCRIPTS)])
        + "})();\n"
    )
