"""BEiT-3 as a family: tokenizer, image pipelines, adapters and `--compile` around upstream's models and checkpoints."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from beit3_vqa.config.config import RunConfig
from beit3_vqa.config.options import DEFAULT_PROMPT_TEMPLATE, MAX_BPE_TOKENS
from beit3_vqa.config.resolve import prompt_for
from beit3_vqa.data.index import TOKENIZER_FILE
from beit3_vqa.data.prompt import PromptTemplate
from beit3_vqa.data.tokenizer import Tokenizer
from beit3_vqa.data.transforms import EvalTransform
from beit3_vqa.data.types import AttentionMap
from beit3_vqa.errors import InputError
from beit3_vqa.models.attention_maps import LAST_LAYERS, caught_outputs, mean_weights, square
from beit3_vqa.models.base import BaseFamily, TaskShape
from beit3_vqa.models.beit3.graphs import describe_inputs, export_graphs
from beit3_vqa.models.beit3.model import (
    MAX_TEXT_TOKENS,
    BEiT3ForVisualQuestionAnswering,
    BEiT3Model,
    init_unit_scale,
)
from beit3_vqa.models.beit3.pretrained import NEW_IN_FINE_TUNING, load_pretrained
from beit3_vqa.models.beit3.processor import BEiT3Processor, option_template
from beit3_vqa.models.compile import compile_model
from beit3_vqa.models.lora import add_adapters, keep_names
from beit3_vqa.models.names import HEADS, build_model, parse_name
from beit3_vqa.models.weights import asked_weights
from beit3_vqa.runtime.files import file_sha256, is_file, replacing
from beit3_vqa.runtime.precision import Precision

logger = logging.getLogger(__name__)

WASTED_ROWS = 4  # a user is told if the embedding has this many times as many rows as the tokenizer has ids
COMPILED_LENGTH_STEP = 16  # tokens; each length of text is compiled anew, so there should be few


class BEiT3Family(BaseFamily[BEiT3Model, BEiT3Processor]):
    """The models called `beit3_{size}_patch{P}_{resolution}`."""

    unused = frozenset({"pretrained"})

    def __init__(self, config: RunConfig, task: TaskShape):
        super().__init__(config, task)
        wanted = task.head or task.name
        self.name = parse_name(config.model.model, head=wanted)
        if HEADS[self.name.head].build != HEADS[wanted].build:
            raise InputError(
                f"--model {config.model.model} is for other tasks than --task {task.name}: leave _{self.name.head} out "
                f"of the name, or end it with _{wanted}."
            )

    @property
    def img_size(self) -> int:
        """Return the side of the square image in pixels."""
        return self.name.img_size

    def processor(self, checkpoint_folder: Path | None) -> BEiT3Processor:
        """Build tokenizer, prompt and image pipelines of a run; no tokenizer if the task has no text.

        Raises:
            InputError: no tokenizer, one with more ids than the model embeds, or an impossible --num_max_bpe_tokens.
        """
        config = self.config
        evaluate = EvalTransform(self.img_size)
        train, fast_decode = self.train_transform(), config.data.fast_decode
        if not self.task.inputs.text:
            return BEiT3Processor(
                None, 0, PromptTemplate(DEFAULT_PROMPT_TEMPLATE), evaluate, train, fast_decode, inputs=self.task.inputs
            )
        tokenizer = Tokenizer(find_tokenizer(config, checkpoint_folder))
        if tokenizer.vocab_size > config.model.vocab_size:
            beside = "Give the one that lay beside the checkpoint."
            advice = "Raise --vocab_size." if checkpoint_folder is None else beside
            raise InputError(
                f"{tokenizer.path} has {tokenizer.vocab_size} ids, the model's embedding {config.model.vocab_size} "
                f"rows. {advice}"
            )
        from_scratch = checkpoint_folder is None and not config.init.finetune
        if from_scratch and config.model.vocab_size >= WASTED_ROWS * tokenizer.vocab_size:
            logger.info(
                f"{tokenizer.path} has {tokenizer.vocab_size:,} ids, the model's embedding "
                f"{config.model.vocab_size:,} rows. From scratch, --vocab_size {tokenizer.vocab_size} leaves out rows "
                "that no text ever uses"
            )
        max_tokens = config.model.num_max_bpe_tokens or MAX_BPE_TOKENS
        length_step = COMPILED_LENGTH_STEP if config.compute.compile else 1
        most = MAX_TEXT_TOKENS // length_step * length_step  # padding to the step mustn't leave the position table
        if not 3 <= max_tokens <= most:
            raise InputError(f"--num_max_bpe_tokens {max_tokens}: must lie between 3 and {most}.")
        choices = self.task.num_classes if self.task.answers_are_options else None
        template = prompt_for(config.model.prompt_template, [choices] if choices else [])
        one_by_one = self.task.option_by_option
        prompt = option_template(template) if one_by_one else PromptTemplate(template, choices)
        return BEiT3Processor(
            tokenizer, max_tokens, prompt, evaluate, train, fast_decode, length_step, self.task.inputs
        )

    def build(self, precision: Precision) -> BEiT3Model:
        """Build the model with upstream's fresh weights, with adapters and compiled if the options say so.

        With adapters, pooler and head are trained too, and a checkpoint holds all weights, so that it can be used
        without another file.
        """
        config = self.config
        classes = {"num_classes": self.task.num_classes} if self.task.num_classes else {}
        model = build_model(
            self.name,
            **classes,
            vocab_size=config.model.vocab_size,
            drop_path_rate=config.init.drop_path,
            attention=config.compute.attention,
            checkpoint_every=config.compute.checkpoint_every if config.compute.checkpoint_activations else 0,
        )
        if config.model.lora_rank:
            add_adapters(model, config.model)
            keep_names(model)
            for name, parameter in model.named_parameters():
                if name.startswith(NEW_IN_FINE_TUNING):  # they start from fresh weights, so they can't stay frozen
                    parameter.requires_grad_(True)
        if config.compute.compile:
            compile_model(model)
        return model

    def skeleton(self) -> BEiT3Model:
        """Build backbone, head and any adapters on the meta device, without memory for them."""
        with torch.device("meta"):
            return self.build(Precision("fp32", torch.device("cpu")))

    def initialise(self, model: BEiT3Model, processor: BEiT3Processor, content: dict[str, object] | None) -> list[str]:
        """Fill the model with the weights of `--finetune`, else with fresh ones; return names of weights not in it.

        Raises:
            InputError: weights that don't fit, or adapters without pretrained weights.
        """
        options = self.config.init
        if self.config.model.lora_rank and not options.finetune:
            raise InputError("--lora_rank: adapters need pretrained weights to adapt; give them with --finetune.")
        # Fresh weights matter only if training starts from them; a checkpoint overwrites them.
        if options.init == "unit" or (options.init == "auto" and not options.finetune):
            init_unit_scale(model)
        if content is not None:
            where = f"--finetune {options.finetune}"
            if self.check_fingerprints(content, model, processor):
                logger.info(
                    f"{where}: was trained with another tokenizer, so its token embeddings don't fit those of "
                    f"{_path(processor)} and have to be learned anew; the right one is the tokenizer.spm beside that "
                    "checkpoint."
                )
            return self.load_pretrained(model, asked_weights(content, self.config, where), where)
        return []

    def load_pretrained(self, model: BEiT3Model, weights: dict[str, Tensor], where: str) -> list[str]:
        """Copy weights of another resolution, head or objective; see `pretrained.load_pretrained`."""
        init = self.config.init
        report = load_pretrained(model, weights, where, init.allow_missing, new_head=init.new_head)
        logger.info(f"{where}: {report}")
        return report.new

    def attention(
        self,
        model: BEiT3Model,
        processor: BEiT3Processor,
        inputs: dict[str, Tensor],
        sizes: Sequence[tuple[int, int]],
        last_layers: int = LAST_LAYERS,
    ) -> tuple[Tensor, list[AttentionMap]]:
        """Return logits, and the attention of the image's [CLS], from which the answer is computed.

        Raises:
            InputError: a task other than questions about one image.
        """
        if processor.tokenizer is None or set(inputs) - {"image_of"} != {"image", "question", "padding_mask"}:
            raise InputError("attention maps exist only for questions about one image, not for this task.")
        if "image_of" in inputs:  # the first layer's projections are read too, for each question
            inputs = {**inputs, "image": inputs["image"].index_select(0, inputs["image_of"])}
            del inputs["image_of"]
        projections = [layer.self_attn for layer in model.beit3.encoder.layers[-last_layers:]]
        # Three outputs a layer: queries of the image side ([CLS] is among them), keys of both sides.
        with caught_outputs([side for a in projections for side in (a.q_proj.A, a.k_proj.A, a.k_proj.B)]) as caught:
            logits = model(**inputs)
        queries = [q[:, 0] for q in caught[0::3]]  # [CLS]; the last layer computes no other query
        # (B, V + T, D), image tokens first, as the model joins them.
        keys = [torch.cat(sides, dim=1) for sides in zip(caught[1::3], caught[2::3], strict=True)]
        of_text = inputs["padding_mask"] == 0
        image_tokens = caught[1].size(1)
        attended = torch.cat([of_text.new_ones(len(of_text), image_tokens), of_text], dim=1)
        shares = mean_weights(queries, keys, projections[0].num_heads, attended).cpu()
        patches, of_tokens = square(shares[:, 1:image_tokens]), shares[:, image_tokens:].tolist()
        maps = []
        for row, ids in enumerate(inputs["question"].tolist()):
            # Special tokens and padding have an empty piece, and no place in the map.
            read = zip(processor.tokenizer.pieces(ids), of_tokens[row], strict=True)
            maps.append(AttentionMap(patches[row], processor.region(*sizes[row]), (tuple(t for t in read if t[0]),)))
        return logits, maps

    def fingerprints(self, model: BEiT3Model, processor: BEiT3Processor) -> dict[str, str]:
        """Return the checksum of the tokenizer's file, if the task has text."""
        return {"tokenizer_sha256": processor.tokenizer.sha256} if processor.tokenizer else {}

    def foreign(self, name: str, processor: BEiT3Processor) -> str:
        """Return the message for another tokenizer, the only checksum that there is."""
        return (
            f"{_path(processor)} isn't the tokenizer that the checkpoint was trained with: its ids would "
            "mean other words. Give --sentencepiece_model the tokenizer.spm that lay beside the checkpoint."
        )

    def export_graphs(
        self, model: BEiT3Model, processor: BEiT3Processor, folder: Path, formats: Sequence[str]
    ) -> dict[str, object]:
        """Write the model as ONNX or for `torch.export.load`; see `beit3.graphs`."""
        if not isinstance(model, BEiT3ForVisualQuestionAnswering):
            return super().export_graphs(model, processor, folder, formats)
        export_graphs(model, folder, formats)
        return describe_inputs(processor)

    def save_assets(self, processor: BEiT3Processor, folder: Path) -> None:
        """Copy the tokenizer beside the checkpoints, so that they can be used anywhere."""
        if processor.tokenizer is None:
            return
        source, target = Path(processor.tokenizer.path), folder / TOKENIZER_FILE
        if not (target.exists() and target.read_bytes() == source.read_bytes()):
            with replacing(target) as file:
                file.write(source.read_bytes())


def _path(processor: BEiT3Processor) -> str:
    return str(processor.tokenizer.path) if processor.tokenizer else ""


def find_tokenizer(config: RunConfig, checkpoint_folder: Path | None) -> Path:
    """Return the SentencePiece file: the one that the user gave, else the checkpoint's, else the data's.

    Raises:
        InputError: there is none, or the sources of the data have different ones.
    """
    if "sentencepiece_model" in config.given and config.model.sentencepiece_model:
        return Path(config.model.sentencepiece_model)
    sources = config.sources
    folders = [Path(folder) for folder in (sources.folder, *sources.folders) if folder]
    places = [folder / TOKENIZER_FILE for folder in dict.fromkeys((checkpoint_folder, *folders)) if folder]
    if config.model.sentencepiece_model:
        places.insert(1, Path(config.model.sentencepiece_model))
    for place in filter(is_file, places):
        if place.parent in folders:
            _require_no_other(place, folders)
        return place
    advice = (
        "beit3.spm (`beit3-vqa download beit3.spm`), or train one: `beit3-vqa prepare ... --train_tokenizer 8000`."
        if checkpoint_folder is None
        else "the tokenizer.spm that lay beside the checkpoint."
    )
    raise InputError(f"no tokenizer: looked for {', '.join(map(str, places))}. Give --sentencepiece_model {advice}")


def _require_no_other(tokenizer: Path, folders: Sequence[Path]) -> None:
    """Raise InputError if one of the folders of data has another tokenizer than this."""
    for other in (folder / TOKENIZER_FILE for folder in folders):
        if is_file(other) and file_sha256(other) != file_sha256(tokenizer):
            raise InputError(
                f"{other}: is another tokenizer than {tokenizer}, and a model has one. Choose it with "
                "--sentencepiece_model FILE."
            )
