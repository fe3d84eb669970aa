"""`beit3-vqa predict`: answer one question about an image or a folder of them, or all questions of a table."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from beit3_vqa.cli.flags import LoadOptions, command_with
from beit3_vqa.errors import InputError
from beit3_vqa.runtime.fields import option


@dataclass(frozen=True)
class PredictOptions(LoadOptions):
    """The question, or the table of questions, and the checkpoint that answers."""

    checkpoint: str = option(
        MISSING, "one of your checkpoints, or a run's folder, whose best is taken", metavar="FILE|FOLDER"
    )
    image: str = option("", "the image, or a folder: the question is asked of every image in it", metavar="FILE|FOLDER")
    question: str = option("", "the question", metavar="TEXT")
    choices: tuple[str, ...] = option((), "the options, in order", metavar="TEXT")
    table: Path | None = option(
        None, "answer every row of this table instead: CSV, XLSX, XLS, Parquet, Feather or JSON", metavar="FILE"
    )
    image_root: str = option("", "with --table: folder that image paths start from", metavar="FOLDER")
    output: Path | None = option(
        None, "CSV to write: the table's rows, or the images, with answer and probabilities", metavar="FILE"
    )
    columns: str = option(
        "", "with --table: what columns mean, as for `prepare table`; default: by names", metavar="MEANING=NAME,..."
    )
    sheet: str = option("", "with --table: name of the sheet of a spreadsheet; default: the first", metavar="NAME")
    encoding: str = option("", "with --table: encoding of a text file; default: UTF-8, or Korean CP949", metavar="NAME")
    skip_bad_images: int = option(0, "answer up to N images that can't be read from the text alone", metavar="N", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table:
            if self.image or self.question or self.choices:
                raise InputError(
                    "--table has images and questions of its own: leave --image, --question, --choices out."
                )
            if not self.image_root or not self.output:
                raise InputError("--table needs --image_root, where the images are, and --output, the CSV to write.")
            return
        if not self.image or not self.question:
            raise InputError("give --image and --question, or a --table of questions.")
        for name in ("image_root", "columns", "sheet", "encoding"):
            if getattr(self, name):
                raise InputError(f"--{name}: belongs to --table.")
        if (self.output or self.skip_bad_images) and not Path(self.image).is_dir():
            raise InputError("--output and --skip_bad_images: are for a --table, or a folder of images.")


def run(options: PredictOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.engine.answer_files import answer_file, answer_folder
    from beit3_vqa.engine.predictor import load
    from beit3_vqa.errors import one_line

    model = load(options.checkpoint, options.device, options.sentencepiece_model, options.pretrained, options.precision)
    skip = options.skip_bad_images
    if options.table and options.output:
        reading = {"columns": options.columns, "sheet": options.sheet, "encoding": options.encoding}
        path = answer_file(model, options.table, options.image_root, options.output, **reading, skip_bad_images=skip)
        print(f"wrote {path}")
        return 0
    if Path(options.image).is_dir():
        asked = (Path(options.image), options.question, options.choices, options.output)
        for line in answer_folder(model, *asked, skip_bad_images=skip):
            print(line)
        return 0
    prediction = model.predict(options.image, options.question, options.choices)
    texts = dict(zip(prediction.probabilities, options.choices, strict=False))
    for answer, probability in prediction.probabilities.items():
        chosen = "<- " if answer == prediction.answer else ""
        print(f"{one_line(answer)}  {probability:6.1%}  {chosen}{texts.get(answer, '')}".rstrip())
    return 0


add = command_with(PredictOptions, "predict", "answer a question about an image, or all questions of a table", run)
