"""CLIP with adapters: each image and text encoded once, against the image repeated and texts padded for every option.

The reference is what a script over transformers and peft computes: as many images as options, texts padded to the
longest that the model reads. Weights are random and shared; seconds don't depend on them.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_vqa.config.options import OptimConfig
from beit3_vqa.config.resolve import GivenOptions, resolve
from beit3_vqa.engine.optim import make_optimizer
from beit3_vqa.models.clip.hub import optional
from beit3_vqa.models.clip.model import CLIPForMultipleChoice
from beit3_vqa.models.lora import add_adapters
from beit3_vqa.models.names import clip_config_values, parse_clip_name
from beit3_vqa.runtime.host import tune_allocator
from beit3_vqa.runtime.precision import Precision, pick_device
from benchmarks.paired import arguments, build_rows, paired, report

OPTIONS = 4
SHORTEST, LONGEST = 12, 24  # tokens of a text, as of a Visual7W question with an answer
MEAN = STD = (0.5, 0.5, 0.5)
Inputs = dict[str, Tensor]


def make_model(name: str, device: torch.device, precision: Precision, layers: int | None) -> CLIPForMultipleChoice:
    """Build a model of published sizes with random weights; `layers` cuts both towers."""
    values = clip_config_values(parse_clip_name(name))
    if layers:
        for tower in ("text_config", "vision_config"):
            values[tower]["num_hidden_layers"] = layers
    torch.manual_seed(0)
    transformers = optional("transformers")
    clip = transformers.CLIPModel._from_config(transformers.CLIPConfig(**values), attn_implementation="sdpa")
    add_adapters(clip, resolve(GivenOptions({"model": name})).model)
    with torch.no_grad():
        for parameter_name, value in clip.named_parameters():
            if ".lora_B." in parameter_name:  # zero at the start, which would hide a difference
                value.normal_(std=0.02)
    model = CLIPForMultipleChoice(clip, MEAN, STD)
    precision.cast_frozen(model)
    return model.to(device)


def make_inputs(model: CLIPForMultipleChoice, questions: int, images: int, device: torch.device) -> Inputs:
    """Make a batch as the loader gives it: so many questions about so many images, no text twice."""
    config = model.clip.config
    size, text = config.vision_config.image_size, config.text_config
    count = questions * OPTIONS
    ids = torch.randint(1, text.eos_token_id - 1, (count, LONGEST))
    lengths = torch.linspace(SHORTEST, LONGEST, count).long()
    ids[torch.arange(LONGEST) >= lengths[:, None]] = 0
    ids[torch.arange(count), lengths - 1] = text.eos_token_id
    inputs = {
        "image": torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8),
        "image_of": torch.arange(questions) * images // questions,
        "text": ids,
        "text_of": torch.arange(count).view(questions, OPTIONS),
    }
    return {name: value.to(device) for name, value in inputs.items()}


def once(model: CLIPForMultipleChoice, inputs: Inputs) -> Tensor:
    """Compute (B, C) logits as the package does."""
    logits: Tensor = model(**inputs)
    return logits


def repeated(model: CLIPForMultipleChoice, inputs: Inputs) -> Tensor:
    """Compute (B, C) logits as the reference does, from B x C pairs of image and text."""
    most = model.clip.config.text_config.max_position_embeddings
    shape = inputs["text_of"].shape
    image_of = inputs["image_of"].repeat_interleave(shape[1])
    pixels = (inputs["image"].float() - model.mean) / model.std
    ids = F.pad(inputs["text"][inputs["text_of"].flatten()], (0, most - inputs["text"].size(1)))
    # By the towers: what get_image_features and get_text_features return changed in transformers 5.
    seen = model.clip.visual_projection(model.clip.vision_model(pixel_values=pixels[image_of]).pooler_output)
    read = model.clip.text_projection(model.clip.text_model(input_ids=ids).pooler_output)
    images, texts = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
    logits: Tensor = model.clip.logit_scale.exp() * (images * texts).sum(dim=-1).view(shape)
    return logits


Forward = Callable[[CLIPForMultipleChoice, Inputs], Tensor]
WAYS: Mapping[str, Forward] = {"image repeated, texts padded": repeated, "ours": once}


@torch.no_grad()
def evaluate(way: Forward, model: CLIPForMultipleChoice, inputs: Inputs, precision: Precision) -> Tensor:
    """Compute the logits of a batch."""
    with precision.autocast():
        return way(model, inputs)


def train(
    way: Forward,
    model: CLIPForMultipleChoice,
    inputs: Inputs,
    labels: Tensor,
    precision: Precision,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Train for one step."""
    with precision.autocast():
        logits = way(model, inputs)
    precision.scaler.scale(F.cross_entropy(logits, labels, label_smoothing=0.1)).backward()
    precision.scaler.unscale_(optimizer)
    precision.scaler.step(optimizer)
    precision.scaler.update()
    optimizer.zero_grad(set_to_none=True)


def main() -> None:
    """Run `python -m benchmarks.clip`."""
    parser = arguments(__doc__ or "", rounds=5)
    parser.add_argument("--model", default="clip_vit_large_patch14_lora", help="name of a published size")
    parser.add_argument("--layers", type=int, help="layers of each tower, if fewer than the size has, to try it out")
    parser.add_argument("--questions", type=int, default=4, help="questions in a batch, with four options each")
    parser.add_argument(
        "--images", type=int, default=2, help="images in a batch of evaluation; in training each question has its own"
    )
    parser.add_argument("--device", default="auto", help="as of finetune")
    parser.add_argument("--precision", default="auto", help="as of finetune")
    options = parser.parse_args()
    tune_allocator()
    device = pick_device(options.device)
    precision = Precision(options.precision, device)
    model = make_model(options.model, device, precision, options.layers)
    runs: dict[str, dict[str, Callable[[], object]]] = {}
    shared = make_inputs(model, options.questions, options.images, device)
    evaluations = {name: partial(evaluate, way, model, shared, precision) for name, way in WAYS.items()}
    runs["evaluation"] = {**evaluations}
    own = make_inputs(model, options.questions, options.questions, device)
    labels = torch.randint(0, OPTIONS, (options.questions,), device=device)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-4, layer_decay=1.0))
    runs["training step"] = {
        name: partial(train, way, model, own, labels, precision, optimizer) for name, way in WAYS.items()
    }
    first, second = (run() for run in evaluations.values())
    error = {"ours": f"{((first - second).abs().max() / first.abs().max()).item():.1e}"}
    for title, variants in runs.items():
        model.train(title != "evaluation")
        images = options.images if title == "evaluation" else options.questions
        seconds = paired(variants, options.rounds)
        per_question = {name: f"{min(values) / options.questions:.4g}" for name, values in seconds.items()}
        more = {"least seconds per question": per_question}
        if title == "evaluation":
            more["largest error of a logit"] = error
        what = f"{options.questions} questions with {OPTIONS} options about {images} images, {precision.name}"
        report(f"{title}, {options.model}, {what}", build_rows(seconds, next(iter(WAYS)), **more), options.output)


if __name__ == "__main__":
    main()
