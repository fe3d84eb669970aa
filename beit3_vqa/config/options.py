"""Define every option of a run: its name, default, unit, limits and meaning.

`cli/finetune.py` makes the flags and `--help` from these dataclasses, and `config.py` reads and writes them as
config.json. Names are upstream's where upstream has the option; what differs is said in `help`.
"""

from dataclasses import dataclass
from typing import Final, Literal

from beit3_vqa.runtime.fields import Options, option

DEFAULT_PROMPT_TEMPLATE = "{question} Choices: A. {a} B. {b} C. {c} D. {d}"
ANY_PROMPT_TEMPLATE = "{question} Choices: {options}"  # the default where there aren't four options
OPTION_PROMPT_TEMPLATE = "Question: {question} Answer: {choice}"
MAX_BPE_TOKENS = 64
BATCH_SIZE = 64
AUTO: Final = "auto"  # a value of --batch_size
LOGGERS: Final = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class ModelConfig(Options):
    """Options that decide what the weights mean; --eval and --resume take them from the checkpoint."""

    model: str = option("beit3_base_patch16_480", "name of the model, with or without the task at its end")
    input_size: int | None = option(None, "only checked: the model's name decides the resolution", unit="pixels")
    sentencepiece_model: str = option("", "SentencePiece file; default: tokenizer.spm in --data_path, if it's there")
    vocab_size: int = option(64010, "rows of the token embedding; 64,010 in the official checkpoints", low=4, high=1e8)
    num_classes: int | None = option(
        None,
        "number of answers; default: the length of answer2label.txt; an error if it differs from that",
        aliases=("nb_classes",),
        low=1,
        high=1e7,
    )
    num_max_bpe_tokens: int | None = option(
        None,
        f"length of the longest text, <s> and </s> included; default: what the data need, {MAX_BPE_TOKENS} at most",
        unit="tokens",
    )
    prompt_template: str = option(
        DEFAULT_PROMPT_TEMPLATE, "text of a multiple-choice question, or for CLIP and vqarank of one option"
    )
    vqa_loss: str = option("ce", "cross entropy, or upstream's binary cross entropy per class", choices=("ce", "bce"))
    pretrained: str = option("", "CLIP: Hugging Face folder of the model to train, or hf:OWNER/NAME on the hub")
    lora_rank: int = option(0, "train low-rank adapters of that rank, nothing else; 0: every weight", low=0, high=1e4)
    lora_alpha: float | None = option(
        None, "adapters are scaled by this over --lora_rank; default: twice --lora_rank", above=0, high=1e6
    )
    lora_dropout: float = option(0.0, "dropout before an adapter", unit="probability", low=0, below=1)
    lora_targets: str = option("q_proj,v_proj,out_proj", "names of the Linear layers that get an adapter")

    @property
    def alpha(self) -> float:
        """Return `--lora_alpha`, or what it is by default."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True)
class InitConfig(Options):
    """Where the weights come from."""

    finetune: str = option("", "checkpoint to start from, official or anybody's")
    model_key: str = option("model|module", "keys of that file that may hold the weights, tried in order")
    model_prefix: str = option("", "prefix to strip from its parameter names")
    allow_missing: str = option("", "regular expression of parameter names that --finetune may leave out")
    new_head: bool = option(False, "begin with a new head; else what fits of the head in --finetune is kept")
    init: str = option(
        "auto",
        "scale of fresh weights: upstream's, or unit, for training from scratch; auto: unit without --finetune",
        choices=("auto", "unit", "upstream"),
    )
    drop_path: float = option(
        0.1, "stochastic depth of the last layer, growing linearly from 0", unit="probability", low=0, below=1
    )


@dataclass(frozen=True)
class DataConfig(Options):
    """Where the questions are and how they are read."""

    data_path: str | tuple[str, ...] = option(
        "", "folder that `beit3-vqa prepare` wrote; several are sources that are trained on together"
    )
    image_root: str | tuple[str, ...] = option(
        "",
        "folder of the images, if it isn't the one in dataset.json; with several sources one for all, or one for each",
    )
    mix: str = option(
        "",
        "with several sources: their shares in an epoch, as in 1,2,0.5. An epoch then shows each row of the source "
        "that is validated on once (of the last one with a share, if its share is 0), and of the others as many as "
        "the shares say; no row comes again before all of its source have come, over epochs too. Default: each row of "
        "all sources once an epoch",
    )
    val_from: str = option(
        "",
        "with several sources: the one that is validated on (with --eval, evaluated), as a folder or a number from 1; "
        "default: the last",
    )
    hard_examples: str = option(
        "",
        "predictions.json of an earlier model, from --eval --split train: training rows that it got wrong and right "
        "come in the proportion of --hard_ratio; an epoch has as many examples as without",
        metavar="FILE",
    )
    hard_ratio: float = option(1.0, "with --hard_examples: wrong rows for each right one", above=0, high=1e6)
    answer2label: str = option(
        "",
        "answer table of a checkpoint that keeps none (upstream's, a fork's), if --data_path has another one",
    )
    fold: int | None = option(
        None, "with `prepare --folds K`: the fold to validate on, 0..K-1, train on the others", low=0, high=1e6
    )
    shuffle_choices: bool = option(True, "permute the options, and the answer with them, anew in every epoch")
    balance_answers: float = option(
        0.0,
        "draw rows of rare answers more often, in proportion to (rows with the same answer)^-this; 0: every row once "
        "an epoch, 1: all answers equally often",
        low=0,
        high=1,
    )
    balance_within: str = option(
        "all",
        "rows that --balance_answers counts: all, or those with the same question, so that no answer is likelier than "
        "another before the image is seen",
        choices=("all", "question"),
    )
    randaug: bool = option(False, "RandAugment(2, 7) on training images")
    train_interpolation: str = option(
        "bicubic", "interpolation of the training crop", choices=("bicubic", "bilinear", "random")
    )
    crop_scale: float = option(
        0.5, "smallest share of the image that a training crop keeps; 1: no cropping", above=0, high=1
    )
    flip: float = option(
        0.5, "horizontal flips in training, never if left or right matters", unit="probability", low=0, high=1
    )
    num_workers: int | None = option(
        None,
        "processes that load data; default: one per core, at most 10; on a CPU half of them; 0: none",
        low=0,
        high=1000,
    )
    fast_decode: bool = option(
        False, "decode large JPEGs at a half, a quarter or an eighth of their size, at least twice the resolution"
    )
    skip_bad_images: int = option(
        0,
        "how many unreadable images training and evaluation may skip, each named once; 0: stop at the first",
        low=0,
        high=1e9,
    )
    pin_mem: bool = option(True, "page-locked memory for faster copies to a GPU")


@dataclass(frozen=True)
class OptimConfig(Options):
    """Options of the optimizer and its schedule."""

    epochs: int = option(20, "passes over the training data", low=1, high=1e6)
    batch_size: int | Literal["auto"] = option(
        BATCH_SIZE, "examples in a forward pass of each process; auto: as many as fit into memory", low=1, high=1e6
    )
    effective_batch_size: int | None = option(
        None,
        "examples in an optimizer step, over all processes and forward passes, instead of --update_freq; default: "
        "--batch_size x --update_freq x processes (with --batch_size auto, 64 x --update_freq x processes)",
        low=1,
        high=1e8,
    )
    update_freq: int = option(1, "forward passes per optimizer step", low=1, high=1e6)
    eval_batch_size: int | Literal["auto"] | None = option(
        None,
        f"examples in an evaluation pass; auto: as many as fit into memory, up to {BATCH_SIZE}; default: 1.5 times "
        "--batch_size",
        low=1,
        high=1e6,
    )
    lr: float = option(5e-4, "peak learning rate", low=0, high=1e6)
    min_lr: float = option(1e-6, "lowest learning rate: where the cosine ends, or a plateau's last", low=0, high=1e6)
    sched: str = option(
        "cosine",
        "learning rate after the warm-up: a cosine, or constant and lowered when the validation loss stops falling",
        choices=("cosine", "plateau"),
    )
    plateau_factor: float = option(
        0.5, "factor for the learning rate when the validation loss stops falling", above=0, below=1
    )
    plateau_patience: int = option(
        2, "validations (epochs, without --eval_steps) to wait for a lower validation loss", low=0, high=1e6
    )
    warmup_epochs: float | None = option(
        None,
        "linear warm-up, fractions allowed; default: 5, and at most a quarter of --epochs",
        unit="epochs",
        low=0,
        high=1e6,
    )
    warmup_steps: int = option(
        -1, "warm-up in optimizer steps, instead of --warmup_epochs, if positive", low=-1, high=1e12
    )
    layer_decay: float = option(0.9, "factor of the learning rate from one layer to the one below", above=0, high=1)
    task_head_lr_weight: float = option(
        0.0, "factor of the head's learning rate, on top of --layer_decay; 0: none", low=0, high=1e6
    )
    weight_decay: float = option(
        0.05, "AdamW's weight decay; none on biases, norms, [CLS] and image positions", low=0, high=1e6
    )
    opt: str = option(
        "adamw",
        "optimizer; muon: for the matrices of layers and patches, beside AdamW; learns much sooner from scratch",
        choices=("adamw", "muon"),
    )
    opt_eps: float = option(1e-8, "AdamW's epsilon", low=0, high=1)
    opt_betas: tuple[float, ...] = option((0.9, 0.999), "AdamW's betas; the first is Muon's momentum, too")
    max_hours: float | None = option(
        None,
        "time for the run, over all its sessions: training ends early enough, and the learning rate comes to its end "
        "there; --epochs is the most; default: no limit",
        unit="hours",
        above=0,
        high=1e5,
    )
    eval_steps: int = option(
        0, "validate every that many optimizer steps of an epoch too; 0: at its end only", low=0, high=1e9
    )
    patience: int = option(
        0, "stop after this many validations in a row without a better score; 0: never", low=0, high=1e6
    )
    clip_grad: float | None = option(None, "largest norm of the gradient; default: no clipping", low=0, high=1e12)
    max_bad_steps: int = option(
        10,
        "end the training after this many steps in a row whose gradient isn't finite; each such step is skipped",
        low=1,
        high=1e6,
    )
    label_smoothing: float = option(0.0, "label smoothing of cross entropy", unit="probability", low=0, below=1)
    model_ema: bool = option(False, "keep a moving average of the weights, and evaluate that")
    model_ema_decay: float = option(0.9999, "decay of the moving average per step; less in the first", low=0, below=1)
    model_ema_force_cpu: bool = option(False, "keep the moving average in main memory")

    @property
    def warmup(self) -> float:
        """Return `--warmup_epochs`, or what they are by default."""
        return min(5.0, self.epochs / 4) if self.warmup_epochs is None else self.warmup_epochs


@dataclass(frozen=True)
class TaskConfig(Options):
    """Options of single tasks; without effect on the others."""

    teacher: str = option(
        "",
        "questions: a predictions.json of the training rows, whose probabilities are learned beside the answers",
        metavar="FILE",
    )
    teacher_weight: float = option(
        0.5, "share of the --teacher in the loss; the rest is for the answers", above=0, high=1
    )
    teacher_temperature: float = option(
        2.0, "what both the --teacher's logits and the model's are divided by to compare them", above=0, high=100
    )
    mixup: float = option(0.0, "imagenet: alpha of mixup; 0: none", low=0, high=1e3)
    cutmix: float = option(0.0, "imagenet: alpha of cutmix; 0: none", low=0, high=1e3)
    cutmix_minmax: tuple[float, ...] = option(
        (), "imagenet: smallest and largest share of a side that cutmix replaces, instead of --cutmix"
    )
    mixup_prob: float = option(1.0, "imagenet: probability that a batch is mixed", low=0, high=1)
    mixup_switch_prob: float = option(0.5, "imagenet: probability of cutmix if both are on", low=0, high=1)
    mixup_mode: str = option(
        "batch", "imagenet: one mix for the batch, for each pair, or for each image", choices=("batch", "pair", "elem")
    )
    color_jitter: float = option(0.4, "imagenet: strength of the colour jitter, if --aa is none", low=0, high=1e2)
    aa: str = option("rand-m9-mstd0.5-inc1", "imagenet: timm's auto-augment policy; none: no policy")
    crop_pct: float = option(
        1.0, "imagenet: share of the shorter side that evaluation's central crop keeps", above=0, high=1
    )
    reprob: float = option(0.25, "imagenet: random erasing of a part of the image", unit="probability", low=0, high=1)
    remode: str = option("pixel", "imagenet: what erased parts are filled with", choices=("pixel", "rand", "const"))
    recount: int = option(1, "imagenet: largest number of erased parts", low=1, high=1e3)
    captioning_mask_prob: float = option(
        0.6, "captioning: share of a caption's tokens that training hides", above=0, high=1
    )
    drop_worst_ratio: float = option(0.2, "captioning: share of the largest losses that is left out", low=0, below=1)
    drop_worst_after: int = option(
        12000, "captioning: optimizer step from which --drop_worst_ratio applies", low=0, high=1e12
    )
    num_beams: int = option(3, "captioning: width of the beam search", low=1, high=1e3)
    length_penalty: float = option(
        0.6, "captioning: exponent of the length that a score is divided by", low=0, high=100
    )


@dataclass(frozen=True)
class ComputeConfig(Options):
    """Options of speed and memory, which don't change what is learned."""

    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = option(
        "auto",
        "compute precision; auto: bf16 if the hardware is faster in it, else fp16 on a GPU, else fp32; CLIP: fp16 on a "
        "GPU; int8, with --eval: a rounded model, on a CPU with VNNI",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
    )
    attention: str = option(
        "auto",
        "kernel: PyTorch's fused one, plain matrix products, or torchscale's own forward pass; auto: the quickest here",
        choices=("auto", "sdpa", "matmul", "reference"),
    )
    checkpoint_activations: bool = option(False, "recompute activations in the backward pass to save memory")
    checkpoint_every: int = option(
        1, "with --checkpoint_activations: recompute every n-th layer only", unit="layers", low=1, high=1000
    )
    compile: bool = option(False, "compile the model with torch.compile; texts are padded to few lengths")
    strategy: str = option(
        "ddp",
        "with torchrun: each process keeps everything, or only a part of the optimizer's moments (ZeRO stage 1), or "
        "a part of the weights too",
        choices=("ddp", "zero1", "fsdp"),
    )
    dist_timeout: float = option(
        600.0, "with torchrun: how long a process waits for another", unit="seconds", low=1, high=1e6
    )
    tune_allocator: bool = option(
        True, "on Linux: keep freed memory for the next step (BEIT3_VQA_TUNE_ALLOCATOR=0 turns it off too)"
    )


@dataclass(frozen=True)
class RunOptions(Options):
    """Options of the run itself: what to do, where, and what to keep."""

    task: str = option("vqacustom", "kind of task")
    output_dir: str = option("", "folder for checkpoints, logs and results")
    log_dir: str = option("", "TensorBoard folder; default: --output_dir/tensorboard")
    log_with: str = option("tensorboard", f"where the curves go, separated by commas: {', '.join(LOGGERS)}")
    seed: int = option(0, "seed of everything random", low=0, high=4294967295)
    eval: bool = option(False, "no training: evaluate --resume or --finetune on --split")
    split: str = option("test", "what --eval evaluates", choices=("test", "test-dev", "val", "train"))
    tta: str = option(
        "none",
        "with --eval: ask each multiple-choice question in every rotation of its options (cyclic: as many passes as "
        "options) or every order (all: 24 passes for 4), or any question in all its wordings (questions), and average",
        choices=("none", "cyclic", "all", "questions", "cyclic+questions", "all+questions"),
    )
    blind: bool = option(False, "with --eval: ask everything once more with a grey image, and show the gap")
    temperature: str = option(
        "",
        "with --eval: what the logits are divided by, or `fit` to find it on --split val and keep it beside the "
        "checkpoint; default: what is kept there, else 1",
    )
    submission_like: str = option(
        "", "with --eval: a sample submission, whose columns, ids and order the submission takes", metavar="FILE"
    )
    resume: str = option("", "one of your own checkpoints to go on from")
    auto_resume: bool = option(True, "go on from the newest checkpoint in --output_dir")
    trust_checkpoint: bool = option(
        False,
        "let any checkpoint run code that it brings (pickle). Without this, only a file typed after --resume may",
    )
    resume_weights_only: bool = option(False, "with --resume: weights and epoch, but a new optimizer")
    data_changed: str = option(
        "refuse",
        "when a run goes on with other rows: refuse it if rows of val were trained on, or if the best score is of "
        "another validation split; ok: go on, with a new best score",
        choices=("refuse", "ok"),
    )
    stop_after_epochs: int = option(
        0, "stop after that many epochs of this session, to be resumed later; 0: never", low=0, high=1e6
    )
    save_ckpt: bool = option(True, "write checkpoints")
    save_ckpt_freq: int = option(
        1, "epochs between checkpoints that are kept (upstream: 5); the newest always is", low=1, high=1e6
    )
    save_steps: int = option(
        0, "optimizer steps between checkpoints inside an epoch; 0: only if a signal stops the run", low=0, high=1e9
    )
    async_save: bool = option(
        True, "train on while a checkpoint is written, from a copy in main memory (of base with AdamW, 2.7 GB)"
    )
    keep_checkpoints: int = option(0, "newest epoch checkpoints to keep beside the best; 0: all", low=0, high=1e6)
    dry_run: bool = option(False, "two training and two evaluation steps, sizes and a time estimate, then stop")
    log_interval: float = option(
        10.0, "time between progress lines if the output is no terminal", unit="seconds", low=0, high=1e9
    )
