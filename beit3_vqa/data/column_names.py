"""The names that people give the columns of their tables."""

import re

from beit3_vqa.runtime.files import one_form

# Meaning -> names that people give such a column, without case, spaces and underscores.
NAMES = {
    "id": ("id", "qid", "questionid", "rowid", "sampleid", "uid", "번호", "아이디"),
    "image": (
        *("imgpath", "image", "img", "imagepath", "imageid", "imgid", "imagefile", "imgfile", "imagename", "imgname"),
        *("filename", "file", "filepath", "path", "picture", "photo", "이미지", "사진", "그림", "파일", "파일명"),
    ),
    "question": ("question", "q", "query", "questiontext", "질문", "문제", "질의"),
    "answer": (
        *("answer", "label", "gt", "groundtruth", "correct", "correctanswer", "correctoption", "answertext", "target"),
        *("정답", "답", "답변"),
    ),
    "weight": ("weight", "sampleweight", "가중치"),
    "options": ("options", "choices", "candidates", "optionlist", "choicelist", "선택지", "보기"),
}


def plain(name: str) -> str:
    """Return a column's name without case, Unicode form, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", one_form(name).casefold())
