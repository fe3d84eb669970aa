"""The replies of the interface, as types from which its description (OpenAPI) is made."""

from pydantic import BaseModel, Field

from beit3_vqa.apps.serve.ensemble import Answer, Ensemble
from beit3_vqa.apps.serve.limits import MAX_OPTION, MAX_QUESTION, MAX_UPLOAD_BYTES
from beit3_vqa.data.images import MAX_IMAGE_PIXELS, MAX_JPEG_PIXELS
from beit3_vqa.data.types import AttentionMap
from beit3_vqa.engine.components import Components


class Problem(BaseModel):
    """Why a request wasn't answered."""

    error: str


class Model(BaseModel):
    """A model that answers."""

    model: str = Field(description="Its full name.")
    parameters: int = Field(description="How many it has.")
    device: str = Field(description="The device on which it computes.")
    precision: str = Field(description="fp32, bf16, fp16 or int8.")


class Description(BaseModel):
    """The models that answer, and the bounds of a request; several vote by the mean of their probabilities."""

    models: list[Model]
    open_ended: bool = Field(description="Questions come without options.")
    fewest_options: int = Field(description="0 if questions are open-ended.")
    most_options: int
    max_upload_bytes: int = Field(default=MAX_UPLOAD_BYTES, description="Of the image.")
    max_jpeg_pixels: int = Field(default=MAX_JPEG_PIXELS, description="Width times height of a JPEG.")
    max_image_pixels: int = Field(default=MAX_IMAGE_PIXELS, description="The same for other formats.")
    max_question: int = Field(
        default=MAX_QUESTION, description="Characters; the model may read fewer and cut the rest off."
    )
    max_option: int = Field(default=MAX_OPTION, description="Characters.")


class Option(BaseModel):
    """An answer that was possible."""

    letter: str | None = Field(description="Null if questions are open-ended.")
    text: str
    probability: float


class AttentionOverlay(BaseModel):
    """Where a model looked: the attention of its [CLS] token over the last layers."""

    model: str
    region: tuple[float, float, float, float] = Field(
        description="Left, top, right and bottom of the part of the image that the model saw, as shares of its sides."
    )
    patches: list[list[float]] = Field(description="The share of each patch of that part, row by row.")


class Reply(BaseModel):
    """The answer of the models."""

    answer: str = Field(description="The likeliest: a letter, or text if questions are open-ended.")
    text: str = Field(description="The answer's text.")
    options: list[Option] = Field(description="As they were given; if they were not, the likeliest few first.")
    attention: list[AttentionOverlay] = Field(description="One for each model if it was wanted, else empty.")


def describe(ensemble: Ensemble) -> Description:
    """Describe an ensemble for clients."""
    counts = ensemble.option_counts
    return Description(
        models=[_model(predictor.components) for predictor in ensemble.predictors],
        open_ended=not counts,
        fewest_options=counts[0] if counts else 0,
        most_options=counts[-1] if counts else 0,
    )


def _model(components: Components) -> Model:
    return Model(
        model=components.config.model.model,
        parameters=sum(parameter.numel() for parameter in components.model.parameters()),
        device=str(components.precision.device),
        precision=components.precision.name,
    )


def reply(answer: Answer, choices: list[str], models: list[Model]) -> Reply:
    """Turn an ensemble's answer to a question with these options into a reply for clients."""
    texts = dict(zip(answer.probabilities, choices, strict=True)) if choices else {}
    return Reply(
        answer=answer.answer,
        text=texts.get(answer.answer, answer.answer),
        options=[
            Option(letter=name if choices else None, text=texts.get(name, name), probability=probability)
            for name, probability in answer.probabilities.items()
        ],
        attention=[_look(model.model, seen) for model, seen in zip(models, answer.attention, strict=False)],
    )


def _look(model: str, seen: AttentionMap) -> AttentionOverlay:
    return AttentionOverlay(model=model, region=seen.region, patches=seen.patches.tolist())
