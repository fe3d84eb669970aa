"""`export --push_to_hub`, against a hub on this machine."""

import subprocess
import sys

import pytest

from tests.helpers.hub_server import running_hub
from tests.helpers.processes import ENVIRONMENT


def push(trained, folder, url, token, *flags):
    """Run the command in a process of its own: huggingface_hub reads its environment when it is imported."""
    command = [sys.executable, "-m", "beit3_vqa", "export", "--checkpoint", str(trained / "checkpoint-best.pth")]
    command += ["--output_dir", str(folder / "model"), "--push_to_hub", "me/my-model", *flags]
    more = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    more |= {"HF_TOKEN": token} if token else {}
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "HF_TOKEN"} | more
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--public"]])
def test_the_folder_is_uploaded_whole(trained, tmp_path, flags):
    with running_hub() as hub:
        done = push(trained, tmp_path, hub.url, "good", *flags)
        assert done.returncode == 0, done.stderr
    assert hub.private == {"me/my-model": not flags}
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert f"uploaded to {hub.url}/me/my-model" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "says"),
    [("", "there is no token"), ("wrong", "doesn't know the token"), ("reader", "may not write there")],
)
def test_a_token_that_is_no_good_is_one_sentence(trained, tmp_path, token, says):
    with running_hub() as hub:
        done = push(trained, tmp_path, hub.url, token)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert not hub.files
    assert (tmp_path / "model").exists() == bool(token)  # it is complete, and can be uploaded later


@pytest.mark.slow
def test_a_hub_out_of_reach_is_one_sentence(trained, tmp_path):
    with running_hub() as hub:
        url = hub.url
    done = push(trained, tmp_path, url, "good")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "is complete: try again with `hf upload me/my-model" in done.stderr
    assert (tmp_path / "model" / "model.safetensors").is_file()
