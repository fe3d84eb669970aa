"""A page and an HTTP interface to ask trained models: `beit3-vqa serve`."""
