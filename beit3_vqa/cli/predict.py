"""`beit3-vqa predict`: answer one question about one image."""

from dataclasses import MISSING, dataclass

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options, option


@dataclass(frozen=True)
class PredictOptions(Options):
    """A question about an image, and the checkpoint that answers it."""

    checkpoint: str = option(MISSING, "one of your checkpoints", metavar="FILE")
    image: str = option(MISSING, "the image", metavar="FILE")
    question: str = option(MISSING, "the question", metavar="TEXT")
    choices: tuple[str, ...] = option((), "the options, in order", metavar="TEXT")
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option("auto", "auto, fp32, bf16 or fp16")
    sentencepiece_model: str = option("", "tokenizer; default: the one beside the checkpoint", metavar="FILE")
    pretrained: str = option("", "folder of the pretrained CLIP; default: the one it was trained on", metavar="FOLDER")


def run(options: PredictOptions) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.engine.predictor import load
    from beit3_vqa.errors import one_line

    model = load(options.checkpoint, options.device, options.sentencepiece_model, options.pretrained, options.precision)
    prediction = model.predict(options.image, options.question, options.choices)
    texts = dict(zip(prediction.probabilities, options.choices, strict=False))
    for answer, probability in prediction.probabilities.items():
        chosen = "<- " if answer == prediction.answer else ""
        print(f"{one_line(answer)}  {probability:6.1%}  {chosen}{texts.get(answer, '')}".rstrip())
    return 0


add = command_with(PredictOptions, "predict", "answer one question about one image", run)
