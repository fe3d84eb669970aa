"""CLIP as a family: transformers' model, peft's adapters, one text per option."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from beit3_vqa.config.config import RunConfig
from beit3_vqa.data.prompt import OptionTemplate
from beit3_vqa.data.types import AttentionMap
from beit3_vqa.errors import InputError
from beit3_vqa.models.attention_maps import LAST_LAYERS, caught_outputs, mean_weights, square
from beit3_vqa.models.base import BaseFamily, TaskShape
from beit3_vqa.models.clip.export import export_clip
from beit3_vqa.models.clip.folder import FILES, OLD_WEIGHTS, WEIGHTS, find_clip_folder
from beit3_vqa.models.clip.hub import (
    CLIPTexts,
    optional,
    read_clip,
    read_clip_config,
    read_image_settings,
    weights_sha256,
)
from beit3_vqa.models.clip.model import CLIPForMultipleChoice
from beit3_vqa.models.clip.processor import SPECIAL_TOKENS, CLIPOptionsProcessor, CLIPTrainTransform, CLIPTransform
from beit3_vqa.models.lora import add_adapters
from beit3_vqa.models.names import parse_clip_name
from beit3_vqa.models.weights import asked_weights, mismatches
from beit3_vqa.runtime.precision import Precision

logger = logging.getLogger(__name__)

# --attention -> transformers' name of the kernel.
KERNELS = {"auto": "sdpa", "sdpa": "sdpa", "matmul": "eager", "reference": "eager"}

# What OpenAI's folders say; transformers then takes the highest id of a text for its end.
LEGACY_END = 2


class CLIPFamily(BaseFamily[CLIPForMultipleChoice, CLIPOptionsProcessor]):
    """The models called `clip_vit_{size}_patch{P}[_{resolution}][_lora]`, built around the weights of `--pretrained`.

    On a GPU `--precision auto` means fp16, as in the published recipe.
    """

    unused = frozenset(
        {"sentencepiece_model", "vocab_size", "drop_path", "init", "allow_missing", "new_head", "checkpoint_every"}
    )
    unused |= {"compile", "task_head_lr_weight"}
    auto_precision: Mapping[str, str] = MappingProxyType({"cuda": "fp16"})
    exports = True
    any_number_of_options = True  # each option is a text of its own
    packages = ("transformers", "peft")

    def __init__(self, config: RunConfig, task: TaskShape):
        super().__init__(config, task)
        options = config.model
        self.name = parse_clip_name(options.model)
        if self.name.lora and not options.lora_rank:
            raise InputError(
                f"--lora_rank 0 trains every weight, but --model {options.model} asks for adapters: leave _lora out of "
                "the name, or give a rank."
            )
        if not task.answers_are_options:
            raise InputError(
                f"--model {options.model} chooses among the options of multiple-choice questions; --task {task.name} "
                "on these data has none: they are open-ended, or no questions at all. Use BEiT-3 (--model beit3_...), "
                "or prepare questions with options."
            )
        self.folder = find_clip_folder(options.pretrained, typed="pretrained" in config.typed_flags)
        self.clip_config = read_clip_config(self.folder, self.name, options.model)
        self.settings = read_image_settings(self.folder, self.img_size)

    @property
    def img_size(self) -> int:
        """Return the side of the square image in pixels."""
        return self.name.img_size

    def processor(self, checkpoint_folder: Path | None) -> CLIPOptionsProcessor:
        """Build the tokenizer and image pipelines of `--pretrained`, and the template of an option.

        Raises:
            InputError: a tokenizer that doesn't belong to the model, or an impossible --num_max_bpe_tokens.
        """
        text_config = self.clip_config.text_config
        texts = CLIPTexts(self.folder, text_config.max_position_embeddings)
        if texts.vocab_size > text_config.vocab_size:
            raise InputError(
                f"--pretrained {texts.path}: its tokenizer has {texts.vocab_size} ids, its model's embedding "
                f"{text_config.vocab_size} rows; they don't belong together."
            )
        if text_config.eos_token_id not in (LEGACY_END, texts.eos_id):
            raise InputError(
                f"--pretrained {texts.path}: its config.json says that texts end with id {text_config.eos_token_id}, "
                f"its tokenizer ends them with {texts.eos_id}; they don't belong together."
            )
        most = text_config.max_position_embeddings
        max_tokens = self.config.model.num_max_bpe_tokens or most
        if not SPECIAL_TOKENS < max_tokens <= most:
            raise InputError(f"--num_max_bpe_tokens {max_tokens}: must lie between {SPECIAL_TOKENS + 1} and {most}.")
        evaluate = CLIPTransform(self.img_size, self.settings.size.get("shortest_edge"))
        template = OptionTemplate(self.config.model.prompt_template)
        train = CLIPTrainTransform(evaluate, self.train_transform())
        return CLIPOptionsProcessor(texts, max_tokens, template, evaluate, train, self.config.data.fast_decode)

    def build(self, precision: Precision) -> CLIPForMultipleChoice:
        """Read the pretrained model and add fresh adapters if only those are trained."""
        options = self.config.model
        clip: Any = read_clip(self.folder, self.clip_config, KERNELS[self.config.compute.attention])
        base_sha256 = ""
        if options.lora_rank:
            base_sha256 = weights_sha256(clip)  # before the adapters, which aren't part of it
            add_adapters(clip, options)
        if self.config.compute.checkpoint_activations:
            # Not reentrant: with frozen embeddings no input of a layer asks for a gradient. Not by the public method:
            # transformers 5 renamed it, and makes it ask for gradients of frozen embeddings.
            clip._set_gradient_checkpointing(True, partial(checkpoint, use_reentrant=False))
        model = CLIPForMultipleChoice(clip, self.settings.image_mean, self.settings.image_std, base_sha256)
        precision.cast_frozen(model)
        return model

    def skeleton(self) -> CLIPForMultipleChoice:
        """Build both towers, the logit scale and any adapters on the meta device, without memory for them."""
        with torch.device("meta"):
            clip = optional("transformers").CLIPModel(self.clip_config)
            if self.config.model.lora_rank:
                add_adapters(clip, self.config.model)
            return CLIPForMultipleChoice(clip, self.settings.image_mean, self.settings.image_std)

    def initialise(
        self, model: CLIPForMultipleChoice, processor: CLIPOptionsProcessor, content: dict[str, object] | None
    ) -> list[str]:
        """Load the weights of `--finetune`, if given; without, the model is filled from `--pretrained` already.

        Raises:
            InputError: weights that don't fit, or that belong to another tokenizer or other frozen weights.
        """
        options = self.config.init
        if content is None:
            return []
        where = f"--finetune {options.finetune}"
        for problem in self.check_fingerprints(content, model, processor):
            raise InputError(f"{where}: {problem}")
        return self.load_pretrained(model, asked_weights(content, self.config, where), where)

    def load_pretrained(self, model: CLIPForMultipleChoice, weights: dict[str, Tensor], where: str) -> list[str]:
        """Copy adapters of the same rank and targets, or all weights if all are trained; nothing can be adapted.

        Raises:
            InputError: weights that don't fit; all of them are listed.
        """
        problems = mismatches(model.state_dict(), weights)
        if problems:
            raise InputError.of_problems(
                f"{where} doesn't fit the model:", problems, "Are --lora_rank and --lora_targets the checkpoint's?"
            )
        model.load_state_dict(weights)
        logger.info(f"{where}: all weights were loaded unchanged")
        return []

    def attention(
        self,
        model: CLIPForMultipleChoice,
        processor: CLIPOptionsProcessor,
        inputs: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        last_layers: int = LAST_LAYERS,
    ) -> tuple[Tensor, list[AttentionMap]]:
        """Return logits, and the attention of the class token over the patches and of each option's end over its words.

        These two tokens are what CLIP compares.
        """
        vision = model.attention_modules("vision")[-last_layers:]
        text = model.attention_modules("text")[-last_layers:]
        modules = [projection for a in (*vision, *text) for projection in (a.q_proj, a.k_proj)]
        with caught_outputs(modules) as caught:
            logits = model(**inputs)
        # Queries and keys by turns, layer by layer: first those of the image, then those of the text.
        of_image, of_text = caught[: 2 * len(vision)], caught[2 * len(vision) :]
        images = mean_weights([q[:, 0] for q in of_image[0::2]], of_image[1::2], vision[0].num_heads, None).cpu()
        ids = inputs["text"]
        end = (ids == processor.texts.eos_id).int().argmax(dim=1)  # the first one: what follows is padding
        rows, places = torch.arange(len(ids), device=ids.device), torch.arange(ids.size(1), device=ids.device)
        queries = [q[rows, end] for q in of_text[0::2]]
        shares = mean_weights(queries, of_text[1::2], text[0].num_heads, places <= end[:, None]).tolist()
        texts = [_words(processor.texts, *of) for of in zip(ids.tolist(), end.tolist(), shares, strict=True)]
        patches, image_of, text_of = square(images[:, 1:]), inputs["image_of"].tolist(), inputs["text_of"].tolist()
        return logits, [
            AttentionMap(patches[image_of[row]], processor.region(*size), tuple(texts[place] for place in text_of[row]))
            for row, size in enumerate(sizes)
        ]

    def fingerprints(self, model: CLIPForMultipleChoice, processor: CLIPOptionsProcessor) -> dict[str, str]:
        """Return checksums of the tokenizer's vocabulary and, if they are frozen, of the pretrained weights."""
        base = {"base_sha256": model.base_sha256} if model.base_sha256 else {}
        return {"tokenizer_sha256": processor.texts.sha256, **base}

    def foreign(self, name: str, processor: CLIPOptionsProcessor) -> str:
        """Return the message for another tokenizer or other pretrained weights; both come with `--pretrained`."""
        what = "other weights" if name == "base_sha256" else "another tokenizer"
        return (
            f"--pretrained {processor.texts.path} has {what} than the model that the checkpoint was trained on. Give "
            "--pretrained the folder that was used then."
        )

    def base_files(self) -> list[Path]:
        """Return the files of `--pretrained` that are read; the weights in one format only."""
        names = FILES if (self.folder / WEIGHTS).exists() else (*FILES, OLD_WEIGHTS)
        return [self.folder / name for name in names if (self.folder / name).is_file()]

    def export(
        self, model: CLIPForMultipleChoice, processor: CLIPOptionsProcessor, folder: Path, *, merge: bool
    ) -> None:
        """Write peft's adapters or, with `merge`, transformers' whole model; see `clip.export`."""
        export_clip(model, processor.texts, self.folder, self.config.model, folder, merge=merge)


def _words(texts: CLIPTexts, ids: list[int], end: int, shares: list[float]) -> tuple[tuple[str, float], ...]:
    """Return the words of a text, each with the sum of its tokens' shares."""
    found, place = [], 1  # after <|startoftext|>
    for word, length in texts.words(ids[1:end]):
        found.append((word, sum(shares[place : place + length])))
        place += length
    return tuple(found)
