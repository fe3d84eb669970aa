"""Questions on one's own data: see `tasks.vqa`."""

from beit3_vqa.tasks.vqa import VQACustom

TASK = VQACustom
