"""Puts the parts of a run together: task, tokenizer, processor, model, loaders, and the weights to start from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit3_vqa.config import RunConfig
from beit3_vqa.data.bad_images import BadImages
from beit3_vqa.data.dataset import CustomDataset
from beit3_vqa.data.index import TOKENIZER_FILE
from beit3_vqa.data.loader import BatchLoader
from beit3_vqa.data.prompt import PromptTemplate
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.data.transforms import EvalTransform, TrainTransform
from beit3_vqa.engine.checkpoint import options_of, read_checkpoint
from beit3_vqa.engine.compiled import compile_model
from beit3_vqa.engine.precision import Precision, pick_device
from beit3_vqa.engine.run_folder import BEST
from beit3_vqa.errors import ImageError, InputError, one_line
from beit3_vqa.files import replacing
from beit3_vqa.models.beit3 import MAX_TEXT_TOKENS, init_unit_scale
from beit3_vqa.models.pretrained import load_pretrained, mismatches, weights_of
from beit3_vqa.models.processor import BEiT3Processor
from beit3_vqa.models.registry import ModelName, build_model, parse_name
from beit3_vqa.options import MAX_BPE_TOKENS
from beit3_vqa.schema import Example
from beit3_vqa.tasks import find_task
from beit3_vqa.tasks.base import Task

COMPILED_LENGTH_STEP = 16  # tokens


@dataclass
class Parts:
    """A run's parts, the model without weights of its own yet."""

    config: RunConfig
    task: Task
    processor: BEiT3Processor
    model: Any
    precision: Precision
    bad_images: BadImages = field(default_factory=BadImages)

    def loader(self, split: str, *, training: bool = False) -> BatchLoader:
        """Batches of a split; says how long its texts are."""
        config = self.config
        dataset = self.task.dataset(split, self.processor, training=training)
        lengths = self.processor.measure(_with_images(dataset, self.bad_images), config.model.vocab_size)
        cut = f", {lengths.cut} cut in the question" if lengths.cut else ""
        print(
            f"{split}: {len(dataset)} questions, texts of up to {lengths.longest} tokens, mean {lengths.mean:.1f}{cut}"
        )
        balanced = training and config.data.balance_answers > 0
        return BatchLoader(
            dataset,
            self.processor.collate,
            config.optim.batch_size if training else config.eval_batch_size,
            shuffle=training,
            seed=config.run.seed,
            weights=dataset.balancing_weights(config.data.balance_answers) if balanced else None,
            targets_of=self.task.targets if training else None,
            num_workers=config.num_workers(beside_model=self.precision.device.type == "cpu"),
            pin_memory=config.data.pin_mem and self.precision.device.type == "cuda",
            bad_images=self.bad_images,
        )


def _with_images(dataset: CustomDataset, bad_images: BadImages) -> Iterator[Example]:
    """The examples of a split, one after the other; images that aren't there count as bad ones.

    Raises:
        InputError: at the end, listing the images that aren't there, if they are more than may be passed over: before
            hours of training find the first.
    """
    row_of: dict[str, str] = {}
    for index in range(len(dataset)):
        example = dataset.example(index)
        row_of.setdefault(example.image_path, example.id)
        yield example
    absent = {path: row for path, row in row_of.items() if path not in bad_images and not Path(path).is_file()}
    if len(absent) > bad_images.left:
        problems = sorted(f"row {row}: {path}" for path, row in absent.items())
        raise InputError.of_problems("images that aren't there:", problems, "Is --image_root right?")
    for path, row in absent.items():
        bad_images.add(ImageError(f"row {one_line(row)}: image {path!r} doesn't exist", path))


def assemble(config: RunConfig, task: Task, checkpoint_folder: Path | None = None) -> Parts:
    """Everything of a run but its weights and its data.

    Args:
        config: the run's options.
        task: what is learned.
        checkpoint_folder: folder of the checkpoint to be loaded, whose tokenizer is the right one.
    """
    device = pick_device(config.compute.device)
    precision = Precision(config.compute.precision, device)
    torch.manual_seed(config.run.seed)
    name = model_name(config, task)
    processor = make_processor(config, name, task, checkpoint_folder)
    model = build_model(
        name,
        num_classes=task.num_classes,
        vocab_size=config.model.vocab_size,
        drop_path_rate=config.init.drop_path,
        attention=config.compute.attention,
        checkpoint_every=config.compute.checkpoint_every if config.compute.checkpoint_activations else 0,
    )
    if config.compute.compile:
        compile_model(model)
    return Parts(config, task, processor, model, precision, BadImages(config.data.skip_bad_images))


def make_task(config: RunConfig) -> Task:
    """The task of `--task` on the data of `--data_path`."""
    return find_task(config.run.task).from_folder(config)


def model_name(config: RunConfig, task: Task) -> ModelName:
    """The parsed `--model`, checked against `--input_size`."""
    name = parse_name(config.model.model, head=task.name)
    if config.model.input_size not in (None, name.img_size):
        raise InputError(
            f"--input_size {config.model.input_size} contradicts --model {config.model.model}, which is for "
            f"{name.img_size} pixels. Change the model's name; --input_size isn't needed."
        )
    return name


def make_processor(config: RunConfig, name: ModelName, task: Task, checkpoint_folder: Path | None) -> BEiT3Processor:
    """Tokenizer, prompt and image pipelines of a run."""
    tokenizer = Tokenizer(find_tokenizer(config, checkpoint_folder))
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(
            f"{tokenizer.path} has {tokenizer.vocab_size} ids, the model's embedding {config.model.vocab_size} rows. "
            "Is it the tokenizer that belongs to the checkpoint? From scratch, raise --vocab_size."
        )
    max_tokens = config.model.num_max_bpe_tokens or MAX_BPE_TOKENS
    length_step = COMPILED_LENGTH_STEP if config.compute.compile else 1
    most = MAX_TEXT_TOKENS // length_step * length_step
    if not 3 <= max_tokens <= most:
        raise InputError(f"--num_max_bpe_tokens {max_tokens}: must lie between 3 and {most}.")
    options = config.data
    train = TrainTransform(
        name.img_size,
        scale=(options.crop_scale, 1.0),
        interpolation=options.train_interpolation,
        flip=options.flip,
        randaug=options.randaug,
    )
    prompt = PromptTemplate(config.model.prompt_template, task.num_classes if task.answers_are_options else 4)
    evaluate = EvalTransform(name.img_size)
    return BEiT3Processor(tokenizer, max_tokens, prompt, evaluate, train, options.fast_decode, length_step)


def find_tokenizer(config: RunConfig, checkpoint_folder: Path | None) -> Path:
    """The SentencePiece file: the one that was given, else the checkpoint's, else the data's.

    Raises:
        InputError: there is none.
    """
    if "sentencepiece_model" in config.given and config.model.sentencepiece_model:
        return Path(config.model.sentencepiece_model)
    data_folder = Path(config.data.data_path) if config.data.data_path else None
    places = [folder / TOKENIZER_FILE for folder in (checkpoint_folder, data_folder) if folder]
    if config.model.sentencepiece_model:
        places.insert(1, Path(config.model.sentencepiece_model))
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"no tokenizer: looked for {', '.join(map(str, places))}. Give --sentencepiece_model beit3.spm "
        "(`beit3-vqa download beit3.spm`), or train one: `beit3-vqa prepare ... --train_tokenizer 8000`."
    )


def keep_tokenizer(parts: Parts, folder: Path) -> None:
    """Puts the tokenizer beside the checkpoints, so that they can be used anywhere."""
    source, target = Path(parts.processor.tokenizer.path), folder / TOKENIZER_FILE
    if not (target.exists() and target.read_bytes() == source.read_bytes()):
        with replacing(target) as file:
            file.write(source.read_bytes())


def has_another_tokenizer(content: dict[str, Any], parts: Parts) -> bool:
    """Whether a checkpoint says that it was trained with another tokenizer than the run's; upstream's don't say."""
    ours = parts.processor.tokenizer.sha256
    return content.get("tokenizer_sha256", ours) != ours


def initialise(parts: Parts) -> None:
    """Fresh or pretrained weights: `--finetune`, else from scratch."""
    options = parts.config.init
    if options.init == "unit" or (options.init == "auto" and not options.finetune):
        init_unit_scale(parts.model)
    if options.finetune:
        content = read_checkpoint(options.finetune, "--finetune", trust=options.trust_checkpoint)
        if has_another_tokenizer(content, parts):
            print(
                f"--finetune {options.finetune}: was trained with another tokenizer than "
                f"{parts.processor.tokenizer.path}, so tokens have to be learned anew; the right one is the "
                "tokenizer.spm beside that checkpoint."
            )
        weights = weights_of(content, options.model_key, options.model_prefix)
        report = load_pretrained(parts.model, weights, f"--finetune {options.finetune}", options.allow_missing)
        print(f"--finetune {options.finetune}: {report}")


def checkpoint_to_evaluate(config: RunConfig) -> tuple[Path, str]:
    """The checkpoint of `--resume`, of `--finetune`, or the best of the output folder, and the flag that named it."""
    if config.run.resume:
        return Path(config.run.resume), "--resume"
    if config.init.finetune:
        return Path(config.init.finetune), "--finetune"
    best = Path(config.run.output_dir) / BEST
    if config.run.output_dir and best.is_file():
        return best, "--resume"
    raise InputError("--eval: say what to evaluate with --resume CHECKPOINT or --finetune CHECKPOINT.")


def config_of_checkpoint(config: RunConfig, content: dict[str, Any], where: str) -> RunConfig:
    """The run's options with the model's taken from the checkpoint `where`, where they weren't given."""
    saved = {name: value for name, value in options_of(content).items() if name not in ("input_size", "num_classes")}
    if saved and "vqa_loss" not in saved:
        saved["vqa_loss"] = "bce"  # upstream's scripts and their forks know no other
        if "vqa_loss" not in config.given:
            print("the checkpoint is of upstream's scripts: --vqa_loss bce, as they train")
    return config.with_model_of(saved, where)


def load_for_inference(parts: Parts, content: dict[str, Any], where: str, *, exact: bool = True) -> None:
    """The weights to answer with: the moving average if the run kept one.

    Args:
        parts: whose model is filled.
        content: of the checkpoint.
        where: its name, for messages.
        exact: every weight must fit; else what `--finetune` mends is mended, but the head must be there.

    Raises:
        InputError: weights that don't fit.
    """
    options = parts.config.init
    weights = weights_of(content, f"model_ema|{options.model_key}", options.model_prefix)
    if exact:
        load_weights(parts.model, weights, where)
        return
    report = load_pretrained(parts.model, weights, where, options.allow_missing)
    print(f"{where}: {report}")
    if report.new:
        raise InputError(
            f"{where}: lacks {', '.join(report.new[:4])}, so there is nothing to evaluate. Train first, or give a "
            "checkpoint that was fine-tuned on these answers."
        )


def load_weights(model: nn.Module, weights: dict[str, Any], where: str) -> None:
    """A state dict that must fit exactly.

    Raises:
        InputError: it doesn't.
    """
    problems = mismatches(model.state_dict(), weights)
    if problems:
        raise InputError.of_problems(
            f"{where} doesn't fit the model:",
            problems,
            "Another head or resolution? Start from it with --finetune, or resume with --resume_weights_only.",
        )
    model.load_state_dict(weights)
