"""Write a spreadsheet's value as the spreadsheet shows it."""

import datetime
import math
import re
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import Any


def as_shown(value: Any, number_format: str) -> str:
    """Return a spreadsheet's value as the spreadsheet shows it, for the usual formats of numbers and times of a day.

    Dates are shown as 2024-01-31, whatever their format; a number of an unusual format is shown in full.
    """
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    code = number_format.partition(";")[0].strip()
    if isinstance(value, datetime.time):
        return _shown_time(value, code.lower())
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return str(value)
    if re.fullmatch("0+", code):
        return f"{int(_rounded(value, 0)):0{len(code) + (value < 0)}d}"
    found = re.fullmatch(r"(#,##)?0(?:\.(0+))?(%?)", code)
    if found:
        comma, places, percent = "," if found[1] else "", len(found[2] or ""), found[3]
        return f"{_rounded(value, places, shift=2 if percent else 0):{comma}.{places}f}{percent}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 1e15 else repr(value)
    # As many digits as fit the eleven characters of a cell.
    return f"{value:.10g}" if isinstance(value, float) and code.lower() == "general" else repr(value)


def _shown_time(value: datetime.time, code: str) -> str:
    """Return a time as formats such as `h:mm`, `hh:mm:ss` and `h:mm AM/PM` show it; in full if it has no hour."""
    code = re.sub(r'\[[^\]]*\]|"[^"]*"', "", code)  # [$-en-US], and words
    if "h" not in code:
        return value.isoformat()
    halves = "am/pm" in code
    hour = (value.hour % 12 or 12) if halves else value.hour
    shown = f"{hour:02}" if "hh" in code else str(hour)
    shown += f":{value.minute:02}" + (f":{value.second:02}" if "s" in code or value.second else "")
    return shown + (" PM" if value.hour >= 12 else " AM") * halves


def _rounded(value: float, places: int, shift: int = 0) -> Decimal:
    """Return value * 10^shift, rounded to so many places as spreadsheets do: halves away from 0."""
    enough = Context(prec=1000)  # digits: 309 of the largest number, and places after the point
    exact = Decimal(repr(value)).scaleb(shift, enough)
    return exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP, enough)
