import ast
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """Read `__version__`, the one place that says it, without importing the package, which needs what isn't there."""
    (line,) = re.findall(r"^__version__ = (.+)$", (HERE / "beit3_vqa" / "__init__.py").read_text("utf-8"), re.M)
    return str(ast.literal_eval(line))


def readme() -> str:
    """Read the README as a registry shows it: links to files of the repository, dead there, become their text."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:|#)[^)]*\)", r"\1", text)


setup(
    name="beit3_vqa",
    version=version(),
    description="Fine-tune BEiT-3 or CLIP on your own visual question answering data: from a CSV to a submission",
    long_description=readme(),
    long_description_content_type="text/markdown",
    author="The beit3_vqa authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords="BEiT-3, CLIP, visual question answering, VQA, multiple choice, fine-tuning, LoRA, PyTorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["beit3_vqa", "beit3_vqa.*"]),
    package_data={
        "beit3_vqa": ["py.typed", "apps/attention.js", "apps/serve/page/*"],
        "beit3_vqa.apps.bundle": ["script.txt"],
        "beit3_vqa.apps.report": ["*.j2", "*.css", "*.js"],
        "beit3_vqa.data": ["*.css"],
        "beit3_vqa.preparation": ["*.j2", "*.css"],
    },
    install_requires=[
        "torch>=2.6",  # before it, files read as plain data could run code (CVE-2025-32434)
        "torchvision>=0.21",
        # Its module names are the checkpoint format. It pins timm==0.6.13 and fairscale==0.4.0, which pip then takes;
        # installed with --no-deps beside newer ones (timm to 1.0.31, fairscale to 0.4.13) it works too.
        "torchscale==0.3.0",
        "timm>=0.6.13",
        "sentencepiece>=0.2.2",  # earlier ones crash on hostile model files (CVE-2026-1260 and what followed)
        "pillow>=11",  # earlier ones tell the size of a turned TIFF before it is turned
        "numpy>=2",  # timm 0.6.13 mixes by np.bool, which 1.24 to 1.26 don't have
        "pandas>=2.2.2",  # DataFrames in and out; earlier ones can't be imported beside numpy 2
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        # --model clip_... and --lora_rank. A folder's config.json could choose code that transformers runs, until 5.3
        # (CVE-2026-4372) and 5.5 (CVE-2026-5241). What torchscale pins needs 4.57, so our own reading keeps such keys
        # away in every version (models/clip/folder.py), and the mended ones are in the range.
        "clip": ["transformers>=4.57,<6", "peft>=0.13"],
        # `beit3-vqa export --format onnx`: torch's exporter, and the runtime that checks what it made
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "caption": ["pycocoevalcap"],  # CIDEr, BLEU, ROUGE-L of captions; Java for its tokenizer and METEOR
        "excel": ["openpyxl>=3.1", "xlrd>=2"],  # `prepare table` of XLSX and XLS files
        "heic": ["pillow-heif>=0.18"],  # photographs of iPhones
        # of Parquet and Feather files; earlier ones can't be imported beside numpy 2, or run code (CVE-2023-47248)
        "parquet": ["pyarrow>=16"],
        "search": ["optuna>=4"],  # `beit3-vqa search`
        "report": ["jinja2"],  # `beit3-vqa report`
        # `beit3-vqa serve`. FastAPI checks requests and describes itself in OpenAPI from the same types; uvicorn serves
        # it in this process, beside the model, and stops in order; python-multipart is what FastAPI reads uploads with.
        # h11 and starlette are what these two stand on, from where CVE-2025-43859 and CVE-2025-62727 are mended.
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.18", "h11>=0.16", "starlette>=0.49.1"],
        "wandb": ["wandb"],  # --log_with wandb
        "mlflow": ["mlflow-skinny>=2"],  # --log_with mlflow; the rest of MLflow is only needed to look at the curves
        "demo": ["easy-vqa", "jinja2"],  # the 48k questions that `beit3-vqa demo` learns, and its report
        "test": [
            "pytest",
            "pytest-xdist",  # both cores run tests
            "hypothesis",
            "transformers>=4.57,<6",  # its tokenizers that read SentencePiece's models are the tokenizer's oracles
            "peft>=0.13",
            "pycocoevalcap",
            "easy-vqa",
            "scikit-image",  # real photographs
            "jinja2",
            "fastapi>=0.115",
            "uvicorn>=0.30",
            "python-multipart>=0.0.18",
            "h11>=0.16",
            "starlette>=0.49.1",
            "openpyxl>=3.1",
            "xlrd>=2",
            "xlwt",  # writes the XLS files of tests
            "pyarrow>=16",
            "pillow-heif>=0.18",
            "onnx>=1.17",
            "onnxscript>=0.5",
            "onnxruntime>=1.20",
            "wandb",
            "mlflow-skinny>=2",
            "optuna>=4",
            "nbclient",  # runs get_started/colab.ipynb
            "nbformat",
            "ipykernel",
            "playwright",  # drives the Chromium in which pages are looked at
            "setuptools>=70.1",  # makes the wheel that is tested, without a package beside it
            "twine",  # would a registry take it?
            "ruff",
            "mypy",
        ],
    },
    entry_points={"console_scripts": ["beit3-vqa=beit3_vqa.cli.main:main"]},
)
