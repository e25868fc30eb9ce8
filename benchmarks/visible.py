"""How soon what is put, replaced and deleted over HTTP is found and no longer found, in a daemon that follows a stream.

    python benchmarks/visible.py [--probes 10] [--kafka HOST:PORT] [--json results.jsonl]

Asked from outside every 20 ms: a search that only the probe passes. Idle, after pauses of any length up to 6 s as it
learns, evaluates and writes for some seconds after a clip; and while clips trickle in. The time begins when the answer
to the POST or DELETE is here, as the stream has it durably then; so it holds the source's way to the daemon, decoding,
and what the daemon waits for. The stream is a folder, or a topic that is made and stays.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

    def put(self, name: str, version: int = 1) -> None:
        (scene,) = scenes = sample("studio", 1, self.rng)
        (film,) = render(scenes, size_px=64, rng=self.rng)
        media = base64.b64encode(encode(film)).decode()
        meta = {"probe": f"{name} {version}"}
        body = {"video_id": name, "captions": [scene.caption], "media_b64": media, "meta": meta}
        self.http.post("/v1/clips", json=body).raise_for_status()

    def delete(self, name: str) -> None:
        self.http.delete(f"/v1/clips/{name}").raise_for_status()

    def found(self, name: str, version: int) -> bool:
        body = {"query": {"text": "a circle"}, "filter": {"meta.probe": f"{name} {version}"}}
        return bool(self.http.post("/v1/search", json=body).raise_for_status().json()["results"])

    def seconds_until(self, name: str, there: bool, version: int = 1) -> float:
        start = time.perf_counter()
        while self.found(name, version) is not there:
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


def stream(work: Path, kafka: str | None) -> dict[str, Any]:
    """Settings of a source that has 64 clips, or is to get them."""
    if kafka is not None:
        return {
            "source": "streamlearn.connectors.kafka:KafkaSource",
            "kafka.bootstrap_servers": [kafka],
            "kafka.topics": [f"visible-{uuid.uuid4().hex[:8]}"],
        }
    write_stream(work / "clips", domains=["studio"], clips_per_domain=64, seed=1)
    return {"folder.path": work / "clips"}


def measure(url: str, rate: float, probes: int) -> dict[str, list[float]]:
    """Seconds of each probe."""
    client, took = Client(url), defaultdict[str, list[float]](list)
    with trickle(url, rate):
        for i in range(probes):
            client.put(name := f"probe-{rate:g}-{i}")
            took["put"].append(client.seconds_until(name, True))
            client.put(name, 2)
            took["replace"].append(client.seconds_until(name, True, 2))
            client.delete(name)
            took["delete"].append(client.seconds_until(name, False, 2))
            if not rate:
                time.sleep(client.rng.uniform(0, 6))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--kafka", metavar="HOST:PORT")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        settings = load(None, stream(Path(work), args.kafka) | {"state_dir": Path(work) / "state", "api.port": 0})
        with Daemon(settings) as running:
            if args.kafka is not None:
                client = Client(running.url)
                for i in range(64):
                    client.put(f"first-{i}")
            while running.service.status()["state"] != "idle" or running.state.clips < 64:
                time.sleep(0.1)
            for rate in RATES:
                for what, seconds in measure(running.url, rate, args.probes).items():
                    median, most = round(float(np.median(seconds)), 2), round(max(seconds), 2)
                    row = {"others_per_s": rate, "what": what, "median_s": median, "most_s": most}
                    print(json.dumps(row), flush=True)
                    if args.json:
                        with args.json.open("a") as out:
                            out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
