"""Captions by beam search: keys and values of image and words kept, against a whole forward pass for each word.

Shapes: N images, K beams of each, V words in the vocabulary.
"""

import torch
from torch import Tensor

from beit3_vqa.models.beit3.beam_search import Caption, beam_search
from beit3_vqa.models.beit3.captioning import BEiT3ForCaptioning
from beit3_vqa.models.names import build_model
from beit3_vqa.runtime.precision import Precision, pick_device
from benchmarks.paired import arguments, build_rows, paired, report

START, END, MASK = 0, 2, 64001


class WholeTexts:
    """A decoder that keeps nothing: each step is a forward pass over the image and all words of each beam."""

    def __init__(self, model: BEiT3ForCaptioning, image: Tensor):
        self.model, self.image = model, image
        self.texts = torch.full((len(image), 1, 1), START, device=image.device)

    def start(self) -> Tensor:
        """Return log-probabilities of the word after those so far, (N, K, V); at first, K is 1."""
        images, beams, _ = self.texts.shape
        mask = torch.full((images, beams, 1), MASK, device=self.texts.device)
        text = torch.cat([self.texts, mask], dim=2).flatten(0, 1)
        wanted = torch.zeros_like(text)
        wanted[:, -1] = 1
        logits: Tensor = self.model(self.image.repeat_interleave(beams, 0), text, language_masked_pos=wanted)
        return logits.float().log_softmax(-1).view(images, beams, -1)

    def extend(self, parents: Tensor, words: Tensor) -> Tensor:
        """Return log-probabilities of the word after these, (N, K, V)."""
        old = self.texts.gather(1, parents[..., None].expand(-1, -1, self.texts.size(2)))
        self.texts = torch.cat([old, words[..., None]], dim=2)
        return self.start()

    def keep(self, images: Tensor) -> None:
        """Forget all images but these, int (N,)."""
        self.texts, self.image = self.texts[images], self.image[images]


def main() -> None:
    """Run `python -m benchmarks.captioning`."""
    parser = arguments(__doc__ or "", rounds=3)
    parser.add_argument("--model", default="beit3_base_patch16_224", help="name without a task")
    parser.add_argument("--images", type=int, default=2, help="images in a batch")
    parser.add_argument("--num_beams", type=int, default=3, help="beams of each image")
    parser.add_argument("--max_len", type=int, default=20, help="tokens of the longest caption")
    parser.add_argument("--device", default="auto", help="as of finetune")
    parser.add_argument("--precision", default="fp32", help="as of finetune")
    options = parser.parse_args()
    device = pick_device(options.device)
    precision = Precision(options.precision, device)
    torch.manual_seed(0)
    model = build_model(f"{options.model}_captioning").to(device).eval()
    assert isinstance(model, BEiT3ForCaptioning)
    image = torch.randn(options.images, 3, model.img_size, model.img_size, device=device)
    beams, longest = options.num_beams, options.max_len

    @torch.no_grad()
    def kept() -> list[Caption]:
        with precision.autocast():
            return model.generate(image, start_id=START, mask_id=MASK, end_id=END, num_beams=beams, max_len=longest)

    @torch.no_grad()
    def anew() -> list[Caption]:
        with precision.autocast():
            return beam_search(WholeTexts(model, image), beams, END, longest - 3, 0.6)

    # Fresh weights hardly ever end a caption: all have the longest length, and both decoders the same work to do.
    words = [len(caption.ids) for caption in kept()]
    seconds = paired({"a forward pass for each word": anew, "keys and values kept": kept}, options.rounds)
    speed = {name: round(options.images / min(times), 3) for name, times in seconds.items()}
    rows = build_rows(seconds, "a forward pass for each word", **{"images/s": speed})
    report(f"captioning, {options.model}, {options.images} images, {beams} beams, {words} words", rows, options.output)


if __name__ == "__main__":
    main()
