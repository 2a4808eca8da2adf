"""An S3 endpoint on loopback, in threads of the test's process."""

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.ports import LOOPBACK, free_port
from pipeline.storage import StoragePath

BUCKET = "runs-of-tests"


class Endpoint:
    """Can be stopped and started again, with all that it holds, and can answer every request that writes with an error."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._app = DomainDispatcherApplication(create_backend_app)
        self._port = free_port()
        self.refusal: tuple[int, str] | None = None
        """HTTP status and S3's code of the error."""
        self.start()
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/{BUCKET}", method="PUT"))

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.url, **keys}

    def start(self) -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_: Any) -> None:
                pass

        self._server = make_server(LOOPBACK, self._port, self._answer, threaded=True, request_handler=Silent)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        if self.refusal is None or environ["REQUEST_METHOD"] not in ("PUT", "POST"):
            return self._app(environ, start_response)
        status, code = self.refusal
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no more</Message></Error>".encode()
        start_response(f"{status} Error", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text]


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    try:
        yield made
    finally:
        made.stop()


def bucket(prefix: str) -> StoragePath:
    return StoragePath(f"s3://{BUCKET}/{prefix}")
