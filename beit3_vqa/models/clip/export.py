"""Export of a trained CLIP as a folder that others read: peft's adapters, or transformers' whole model."""

import json
import warnings
from pathlib import Path
from typing import Any

from beit3_vqa.config.options import ModelConfig
from beit3_vqa.errors import InputError, NotFiniteError, first_line
from beit3_vqa.models.clip.folder import HUB
from beit3_vqa.models.clip.hub import CLIPTexts, optional, read_clip, read_image_settings, without_bars
from beit3_vqa.models.clip.model import CLIPForMultipleChoice
from beit3_vqa.models.lora import lora_config
from beit3_vqa.runtime.files import write_text
from beit3_vqa.runtime.precision import outputs_are_finite

ADAPTER_CONFIG = "adapter_config.json"
# What peft 0.13 knows; it refuses a file with any other name. What later versions add is at rest in adapters like ours.
_ADAPTER_ENTRIES = frozenset(
    ("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode")
    + ("r", "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "modules_to_save")
    + ("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "loftq_config")
    + ("megatron_config", "megatron_core", "use_dora", "layer_replication")
)


def export_clip(
    model: CLIPForMultipleChoice,
    texts: CLIPTexts,
    base_folder: Path,
    options: ModelConfig,
    folder: Path,
    *,
    merge: bool,
) -> None:
    """Write a folder for `PeftModel.from_pretrained` or, with `merge`, for `CLIPModel.from_pretrained`.

    Args:
        model: the trained model, in float32.
        texts: its tokenizer, written along with the image settings.
        base_folder: folder of the pretrained model that training started from.
        options: the run's, with `--pretrained` and the adapters.
        folder: an empty one.
        merge: add the adapters to the weights beside them.

    Raises:
        InputError: there are no adapters to write by themselves.
        OSError: the folder can't be written.
        NotFiniteError: weights that aren't finite once the adapters are added.
    """
    if not options.lora_rank and not merge:
        raise InputError("the checkpoint has no adapters, every weight was trained: export it with --merge.")
    written: Any = model.clip
    if options.lora_rank:
        base: Any = read_clip(base_folder, model.clip.config, model.clip.config._attn_implementation)
        base.name_or_path = options.pretrained.removeprefix(HUB)  # peft notes it down for whoever loads the adapters
        with warnings.catch_warnings():
            # peft asks for it by the name that it had before transformers 5.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            written = optional("peft").get_peft_model(base, lora_config(options))
        # The wrapper's names begin with where it keeps the model that ours calls `clip`.
        adapters = {f"base_model.model.{n.removeprefix('clip.')}": value for n, value in model.state_dict().items()}
        written.load_state_dict(adapters, strict=False)
        written = written.merge_and_unload() if merge else written
        if not outputs_are_finite(written.state_dict()):
            raise NotFiniteError("its weights aren't finite numbers with the adapters added: take another checkpoint.")
    try:
        # peft would look on the hub whether the vocabulary was enlarged; it never is.
        with without_bars():
            written.save_pretrained(folder, **({} if merge else {"save_embedding_layers": False}))
        if not merge:
            entries = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            kept = {name: value for name, value in entries.items() if name in _ADAPTER_ENTRIES}
            write_text(folder / ADAPTER_CONFIG, json.dumps(kept, indent=2))
        texts.save(folder)
        read_image_settings(base_folder, model.clip.config.vision_config.image_size).save_pretrained(folder)
    except optional("safetensors").SafetensorError as error:  # a disk that is full
        raise OSError(first_line(error)) from error
