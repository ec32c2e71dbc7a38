"""A server on this machine that answers as the Hugging Face hub does, and may end a download in the middle."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Lists and sends the files of a repository's folder at one commit."""

    def do_HEAD(self):
        self.answer(send=False)

    def do_GET(self):
        self.answer(send=True)

    def answer(self, send):
        server, path = self.server, self.path.partition("?")[0]
        start, headers = 0, {}
        if path.startswith(f"/api/datasets/{server.repo}/tree/{server.commit}"):
            body, headers["Content-Type"] = json.dumps(list(listing(server.folder))).encode(), "application/json"
        elif path.startswith(prefix := f"/datasets/{server.repo}/resolve/{server.commit}/"):
            name = path.removeprefix(prefix)
            body = (server.folder / name).read_bytes()
            headers |= {"ETag": f'"{digest(body)}"', "X-Repo-Commit": server.commit, "Accept-Ranges": "bytes"}
            if send:
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                server.requests.append((name, start))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        else:
            self.send_error(404)
            return
        self.send_response(206 if start else 200)
        for key, value in (headers | {"Content-Length": str(len(body) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            end = len(body) // 2 if path.endswith(server.ends_early or "\0") else None
            self.wfile.write(body[start:end])
            self.close_connection = True

    def log_message(self, *_):
        """Print nothing."""


def digest(content):
    return hashlib.sha256(content).hexdigest()


def listing(folder):
    for path in sorted(folder.rglob("*.parquet")):
        content = path.read_bytes()
        yield {"type": "file", "path": str(path.relative_to(folder)), "size": len(content), "oid": digest(content)[:40]}


@contextmanager
def serve(folder, repo, commit):
    """Serve a folder as a dataset of the hub; its address is ``server.url``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.folder, server.repo, server.commit = Path(folder), repo, commit
    server.requests, server.ends_early = [], None
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
