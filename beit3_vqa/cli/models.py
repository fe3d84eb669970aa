"""`beit3-vqa models`: names, resolutions and parameters."""

from beit3_vqa.cli.flags import command_with
from beit3_vqa.runtime.fields import Options


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    from beit3_vqa.config.resolve import DEFAULTS
    from beit3_vqa.models.names import (
        LISTED_CLIP,
        count_adapters,
        count_clip_parameters,
        count_parameters,
        listed_names,
        parse_clip_name,
        parse_name,
    )

    print(f"{'model':<31} {'resolution':>10} {'parameters':>13}   (4 classes; any resolution the patch divides works)")
    for name in listed_names():
        parsed_name = parse_name(name, head="vqacustom")
        print(f"{name:<31} {parsed_name.img_size:>10} {count_parameters(parsed_name, num_classes=4):>13,}")
    print(f"\n{'model':<31} {'resolution':>10} {'parameters':>13} {'trained':>10}   weights for --pretrained")
    for name, weights in LISTED_CLIP.items():
        clip = parse_clip_name(name)
        adapters = count_adapters(clip, DEFAULTS["clip"]["lora_rank"])
        total = count_clip_parameters(clip) + adapters
        print(f"{name + '_lora':<31} {clip.img_size:>10} {total:>13,} {adapters:>10,}   {weights}")
    return 0


add = command_with(Options, "models", "list models with their resolution and parameters", run)
