from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="beit3_vqa",
    version="0.1.0",
    description="Fine-tune BEiT-3 or CLIP on your own visual question answering data: from a CSV to a submission",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["beit3_vqa", "beit3_vqa.*"]),
    package_data={
        "beit3_vqa": ["py.typed", "apps/serve/page/*"],
        "beit3_vqa.apps.report": ["*.j2", "*.css", "*.js"],
    },
    install_requires=[
        "torch>=2.6",  # before it, files read as plain data could run code (CVE-2025-32434)
        "torchvision>=0.21",
        "timm",
        "torchscale==0.3.0",  # its module names are the checkpoint format
        "sentencepiece>=0.2.2",  # earlier ones crash on hostile model files (CVE-2026-1260 and what followed)
        "pillow>=10.1",
        "numpy",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "clip": ["transformers>=4.46,<5", "peft>=0.13"],  # --model clip_... and --lora_rank
        # `beit3-vqa export --format onnx`: torch's exporter, and the runtime that checks what it made
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "caption": ["pycocoevalcap"],  # CIDEr, BLEU, ROUGE-L of captions; Java for its tokenizer and METEOR
        "report": ["jinja2"],  # `beit3-vqa report`
        # `beit3-vqa serve`. FastAPI checks requests and describes itself in OpenAPI from the same types; uvicorn serves
        # it in this process, beside the model, and stops in order; python-multipart is what FastAPI reads uploads with.
        # h11 and starlette are what these two stand on, from where CVE-2025-43859 and CVE-2025-62727 are mended.
        "serve": ["fastapi>=0.115", "uvicorn>=0.30", "python-multipart>=0.0.18", "h11>=0.16", "starlette>=0.49.1"],
        "demo": ["easy-vqa", "jinja2"],  # the 48k questions that `beit3-vqa demo` learns, and its report
        "test": [
            "pytest",
            "pytest-xdist",  # both cores run tests
            "hypothesis",
            "transformers>=4.46,<5",  # its slow XLMRobertaTokenizer is the tokenizer's oracle
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
            "playwright",  # drives the Chromium in which pages are looked at
            "ruff",
            "mypy",
        ],
    },
    entry_points={"console_scripts": ["beit3-vqa=beit3_vqa.cli.main:main"]},
)
