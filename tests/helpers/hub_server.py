"""A stand-in of the Hugging Face hub on this machine: what huggingface_hub asks to make a repository and fill it.

`python -m tests.helpers.hub_server` isn't needed: `running_hub()` gives the address and what was received.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"Bearer good": 200, "Bearer reader": 403}  # any other: 401
LARGE = (".safetensors", ".spm", ".onnx", ".pt2")


@dataclass
class Hub:
    """What the hub was sent: repositories by name (private or not), files by path, uploads by SHA-256."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *of):
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def say(self, content: object, code: int = 200) -> None:
            text = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def refused(self) -> bool:
            code = TOKENS.get(self.headers.get("Authorization", ""), 401)
            if code != 200:
                self.body()
                self.say({"error": "refused"}, code)
            return code != 200

        def do_PUT(self) -> None:
            content = self.body()
            sha256 = self.path.rpartition("/")[2]
            if hashlib.sha256(content).hexdigest() != sha256:
                return self.say({"error": "not what was announced"}, 400)
            hub.uploads[sha256] = content
            return self.say({})

        def do_GET(self) -> None:
            if self.refused():
                return None
            if self.path.startswith("/api/models/") and (name := "/".join(self.path.split("/")[3:5])) in hub.private:
                return self.say({"id": name, "sha": "0" * 40, "private": hub.private[name], "siblings": []})
            hub.unknown.append(self.path)
            return self.say({"error": "no such page"}, 404)

        def do_POST(self) -> None:
            if self.refused():
                return None
            path, body = self.path.partition("?")[0], self.body()
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'me'}/{asked['name']}"
                hub.private[name] = asked.get("private", asked.get("visibility") == "private")
                return self.say({"url": f"{hub.url}/{name}", "name": name, "id": name})
            if path == "/api/validate-yaml":
                return self.say({"errors": [], "warnings": []})
            if "/preupload/" in path:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": n, "uploadMode": "lfs" if n.endswith(LARGE) else "regular"} for n in names]
                return self.say({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            if path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                actions = [{"upload": {"href": f"{hub.url}/upload/{o['oid']}"}} for o in objects]
                answers = [{**o, "actions": action} for o, action in zip(objects, actions, strict=True)]
                return self.say({"transfer": "basic", "objects": answers})
            if "/commit/" in path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    elif line["key"] == "lfsFile":
                        hub.files[line["value"]["path"]] = hub.uploads[line["value"]["oid"]]
                return self.say({"success": True, "commitOid": "1" * 40, "commitUrl": f"{hub.url}/me/x/commit/1"})
            hub.unknown.append(self.path)
            return self.say({"error": "no such page"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
