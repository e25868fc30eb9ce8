"""How soon what is put and deleted over HTTP is found and no longer found, in a daemon that follows a folder.

    python benchmarks/visible.py [--probes 10] [--json results.jsonl]

Asked from outside every 20 ms: a search that only the probe passes. Idle, and while clips trickle in. The time begins
when the answer to the PUT or DELETE is here, as the stream has it durably then; so it holds the folder's own look-out
(`folder.poll_interval_s`), decoding, and what the daemon waits for.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from streamlearn.app import Daemon
from streamlearn.connectors.synthetic import encode, render, sample, write_stream
from streamlearn.settings import load

RATES = (0.0, 2.0, 4.0)  # clips a second beside the probes
EVERY_S = 0.02


class Client:
    """Puts rendered clips, and sees what is found."""

    def __init__(self, url: str) -> None:
        self.http, self.rng = httpx.Client(base_url=url, timeout=60), np.random.default_rng(3)

    def put(self, name: str) -> None:
        (scene,) = scenes = sample("studio", 1, self.rng)
        (film,) = render(scenes, size_px=64, rng=self.rng)
        media = base64.b64encode(encode(film)).decode()
        body = {"video_id": name, "captions": [scene.caption], "media_b64": media, "meta": {"probe": name}}
        self.http.post("/v1/clips", json=body).raise_for_status()

    def delete(self, name: str) -> None:
        self.http.delete(f"/v1/clips/{name}").raise_for_status()

    def found(self, name: str) -> bool:
        body = {"query": {"text": "a circle"}, "filter": {"meta.probe": name}}
        return bool(self.http.post("/v1/search", json=body).raise_for_status().json()["results"])

    def seconds_until(self, name: str, there: bool) -> float:
        start = time.perf_counter()
        while self.found(name) is not there:
            time.sleep(EVERY_S)
        return time.perf_counter() - start


@contextmanager
def trickle(url: str, per_s: float) -> Iterator[None]:
    done = threading.Event()

    def put() -> None:
        client, n = Client(url), 0
        while not done.wait(1 / per_s):
            client.put(f"other-{per_s:g}-{n}")
            n += 1

    thread = threading.Thread(target=put)
    if per_s:
        thread.start()
        time.sleep(12)  # under way
    try:
        yield
    finally:
        done.set()
        if per_s:
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "clips"
        write_stream(folder, domains=["studio"], clips_per_domain=64, seed=1)
        settings = load(None, {"state_dir": Path(work) / "state", "folder.path": folder, "api.port": 0})
        with Daemon(settings) as running:
            client = Client(running.url)
            while running.service.status()["state"] != "idle":
                time.sleep(0.1)
            for rate in RATES:
                put, deleted = [], []
                with trickle(running.url, rate):
                    for i in range(args.probes):
                        client.put(name := f"probe-{rate:g}-{i}")
                        put.append(client.seconds_until(name, True))
                        client.delete(name)
                        deleted.append(client.seconds_until(name, False))
                        if not rate:
                            time.sleep(4)  # idle again
                for what, seconds in (("put", put), ("delete", deleted)):
                    median, most = round(float(np.median(seconds)), 2), round(max(seconds), 2)
                    row = {"others_per_s": rate, "what": what, "median_s": median, "most_s": most}
                    print(json.dumps(row), flush=True)
                    if args.json:
                        with args.json.open("a") as out:
                            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
