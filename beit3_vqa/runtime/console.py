"""Show what the package's loggers say on the standard output; the level of the logger `beit3_vqa` decides how much."""

import logging


class ConsoleHandler(logging.Handler):
    """Print messages as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message to `sys.stdout` as it is now: it may be a notebook's, or redirected for a while."""
        print(self.format(record), flush=True)


def show_logs() -> None:
    """Let the package's loggers print messages from `logging.INFO` up, unless somebody has set another level."""
    logger = logging.getLogger("beit3_vqa")
    if not logger.handlers:
        logger.addHandler(ConsoleHandler())
        logger.propagate = False  # else a program that shows its own logs would show each message twice
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
