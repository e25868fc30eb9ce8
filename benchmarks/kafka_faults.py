"""What the daemon survives, against a real broker: every clip searchable exactly once, every bad one a dead letter.

    python benchmarks/kafka_faults.py kills [--kills 50] [--seed 7]   # kill -9 at random instants, under load
    python benchmarks/kafka_faults.py away [--seconds 200]            # the broker is killed, and away
    python benchmarks/kafka_faults.py slow [--clips 1500]             # the broker sends 50 kB a second
    python benchmarks/kafka_faults.py resets [--seconds 200]          # connections are reset again and again
    python benchmarks/kafka_faults.py pair                            # two daemons in a group, one is killed
    python benchmarks/kafka_faults.py poison [--messages 10000]       # a third invalid, in every way
    python benchmarks/kafka_faults.py disk                            # a full disk (a small tmpfs: needs root)
    python benchmarks/kafka_faults.py readonly                        # ext4 that goes read-only by itself (needs root)

Each ends with a ledger of ids and prints what it saw; a broken promise is an AssertionError.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))  # the test broker and its daemon process

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from streamlearn.connectors.synthetic import write_stream
from tests.daemon import DaemonProcess, until
from tests.kafka_broker import KafkaBroker, find_broker
from tests.kafka_proxy import proxied

LONG_S = 600.0
SETTINGS = {
    "source": "streamlearn.connectors.kafka:KafkaSource",
    "kafka.session_timeout_ms": 6_000,
    "learner.batch_size": 8,
    "checkpoint.interval_clips": 32,
    "checkpoint.min_free_bytes": 0,
    "evaluate.interval_clips": 500,
    "media.size_px": 32,
    "learner.max_wait_s": 1,
}


class Stream:
    """Clips and bad messages for a topic, and the ledger of what was sent."""

    def __init__(self, broker: KafkaBroker, work: Path, *, partitions: int = 2, seed: int = 0) -> None:
        self.broker, self.topic, self.dead = broker, f"clips-{os.getpid()}-{seed}", f"dead-{os.getpid()}-{seed}"
        broker.create_topic(self.topic, partitions)
        broker.create_topic(self.dead)
        write_stream(work / "films", domains=("studio", "night"), clips_per_domain=60, seed=seed, size_px=32)
        rows = map(json.loads, (work / "films" / "manifest.jsonl").read_text().splitlines())
        films = [(row["caption"], (work / "films" / row["path"]).read_bytes()) for row in rows]
        self._films = itertools.cycle((c, base64.b64encode(media).decode()) for c, media in films)
        self._producer = KafkaProducer(bootstrap_servers=broker.bootstrap, max_block_ms=300_000, retries=1000)
        self.sent_bytes = 0
        self.good: list[str] = []
        self.bad: dict[str, str] = {}

    def settings(self, **others: Any) -> dict[str, Any]:
        return SETTINGS | {
            "kafka.bootstrap_servers": [self.broker.bootstrap],
            "kafka.topics": [self.topic],
            "kafka.dead_letter_topic": self.dead,
            "kafka.group_id": self.topic,
            **others,
        }

    def clip(self) -> None:
        caption, media = next(self._films)
        self.good.append(f"clip-{len(self.good)}")
        self._send(self.good[-1], json.dumps({"captions": [caption], "media_b64": media}).encode())

    def poison(self, value: bytes, code: str, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        name = f"bad-{len(self.bad)}"
        self.bad[name] = code
        self._send(name, value, headers)

    def _send(self, key: str, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.sent_bytes += len(value)
        self._producer.send(self.topic, value, key.encode(), list(headers))

    def flush(self) -> None:
        self._producer.flush()

    @contextlib.contextmanager
    def flowing(self, per_s: float) -> Iterator[None]:
        """Clips, one in ten of them bad, for as long as the block lasts."""
        end = threading.Event()

        def produce() -> None:
            for n in itertools.count():
                if end.wait(1 / per_s):
                    return
                self.poison(b"{", "invalid_json") if n % 10 == 9 else self.clip()

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            self.flush()

    def letters(self) -> dict[str, str]:
        """Code by key; more than one letter for a record is allowed."""
        consumer, tp = KafkaConsumer(bootstrap_servers=self.broker.bootstrap), TopicPartition(self.dead, 0)
        consumer.assign([tp])
        consumer.seek_to_beginning(tp)
        end, found = consumer.end_offsets([tp])[tp], {}
        while consumer.position(tp) < end:
            for message in itertools.chain(*consumer.poll(1000).values()):
                found[message.key.decode()] = dict(message.headers)["streamlearn.error.code"].decode()
        consumer.close()
        return found

    def assert_ledger(self, daemon: DaemonProcess) -> dict[str, Any]:
        """Wait until all was processed; everything is there once, or a dead letter."""
        status = wait(
            daemon,
            lambda s: s["searchable"] == len(self.good) and s["state"] == "idle",
            f"{len(self.good)} clips are searchable",
        )
        assert found(daemon) == sorted(self.good), "a clip is missing, or there twice"
        counts = status["clips"]
        assert counts["learned"] + counts["held_out"] == len(self.good), counts
        assert counts["replaced"] == 0, counts
        assert self.letters() == self.bad, "a dead letter is missing, or has the wrong code"
        return counts


def wait(daemon: DaemonProcess, what: Callable[[dict[str, Any]], Any], sentence: str) -> dict[str, Any]:
    """Wait until the status fits; give up when nothing has moved for `LONG_S`, however slow the machine is."""
    moved, before = time.monotonic(), None
    while True:
        assert daemon.process.poll() is None, daemon.log.read_text()[-3000:]
        status = daemon.status()
        if status is not None and what(status):
            return status
        seen = status and [status[name] for name in ("state", "searchable", "clips", "offsets")]
        if seen != before:
            moved, before = time.monotonic(), seen
        assert time.monotonic() - moved < LONG_S, f"nothing moves before {sentence}; last: {status}"
        time.sleep(0.1)  # between questions to another process


def found(daemon: DaemonProcess) -> list[str]:
    """Every id that is searchable, page by page."""
    ids, token = [], None
    while True:
        body = {"query": {"text": "anything at all"}, "limit": 100, "page_token": token}
        answer = daemon.get("/v1/search", body)
        ids += [hit["video_id"] for hit in answer["results"]]
        token = answer["next_page_token"]
        if token is None:
            return sorted(ids)


class Asking:
    """Searches all the while, and counts the failures."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self._daemon, self._end = daemon, threading.Event()
        self.answered = self.failed = 0
        self.longest_s = 0.0
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        while not self._end.wait(0.1):
            try:
                start = time.monotonic()
                hits = self._daemon.search("a red circle")
                self.longest_s = max(self.longest_s, time.monotonic() - start)
                self.answered += bool(hits)
                self.failed += not hits  # there was something to find before we began
            except OSError:
                self.failed += 1

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def kills(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stream, chance, lives = Stream(broker, work), random.Random(arguments.seed), []
    with stream.flowing(per_s=4):
        for _ in range(arguments.kills):
            with DaemonProcess(work, stream.settings()) as daemon:
                if chance.random() < 0.75:  # else while it starts, restores, joins
                    until(daemon.status, "it answers", LONG_S)
                time.sleep(chance.uniform(0.0, 4.0))  # the instant is the experiment
                status = daemon.status()
                daemon.kill()
            lives.append("starting" if status is None else status["state"])
    with DaemonProcess(work, stream.settings()) as daemon:
        counts = stream.assert_ledger(daemon)
    return {"kills": len(lives), "killed while": {s: lives.count(s) for s in sorted(set(lives))}, "clips": counts}


def away(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stream = Stream(broker, work)
    with DaemonProcess(work, stream.settings()) as daemon:
        for _ in range(300):
            stream.clip()
        stream.flush()
        wait(daemon, lambda s: s["searchable"] >= 50, "it learns")
        with Asking(daemon) as asking:
            broker.kill()
            wait(daemon, lambda s: s["detail"] and "cannot be reached" in s["detail"], "it says so")
            assert daemon.get("/readyz")
            gone, answered = time.monotonic(), asking.answered
            time.sleep(arguments.seconds)  # the absence is the experiment
            assert daemon.get("/readyz")
            meanwhile = asking.answered - answered
            broker.start()
            gone_s = time.monotonic() - gone
            since = time.monotonic()
            stream.clip()
            stream.flush()
            wait(daemon, lambda s: s["detail"] is None, "it is back")
            back_s = time.monotonic() - since
            counts = stream.assert_ledger(daemon)
        assert asking.failed == 0
    return {
        "away_s": round(gone_s), "back_s": round(back_s, 1), "searches while it was away": meanwhile,
        "longest search_s": round(asking.longest_s, 2), "clips": counts,
    }  # fmt: skip


def slow(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole daemon at a broker that sends 50 kB a second over each connection."""
    stream = Stream(broker, work)
    for n in range(arguments.clips):
        stream.clip()
        if n % 10 == 9:
            stream.poison(b"{", "invalid_json")
    stream.flush()
    with proxied(broker) as proxy:
        proxy.bytes_per_s = 50_000
        start = time.monotonic()
        with DaemonProcess(work, stream.settings(**{"kafka.bootstrap_servers": [proxy.address]})) as daemon:
            wait(daemon, lambda s: s["searchable"], "it learns")
            with Asking(daemon) as asking:
                counts = stream.assert_ledger(daemon)
                took_s = time.monotonic() - start
            assert asking.failed == 0
            restarts = daemon.log.read_text().count("making a new Kafka consumer")
    return {
        "kB": stream.sent_bytes // 1000, "read in_s": round(took_s), "consumers made anew": restarts,
        "searches": asking.answered, "longest search_s": round(asking.longest_s, 2), "clips": counts,
        "dead letters": len(stream.bad),
    }  # fmt: skip


def resets(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole daemon, and every connection of its consumer and producer reset at random, under load."""
    stream, chance, cuts = Stream(broker, work), random.Random(arguments.seed), 0
    with proxied(broker) as proxy:
        settings = stream.settings(**{"kafka.bootstrap_servers": [proxy.address]})
        with DaemonProcess(work, settings) as daemon:
            with stream.flowing(per_s=10):
                wait(daemon, lambda s: s["searchable"], "it learns")
                with Asking(daemon) as asking:
                    end = time.monotonic() + arguments.seconds
                    while time.monotonic() < end:
                        time.sleep(chance.uniform(0.2, 5.0))  # the instant is the experiment
                        proxy.cut()
                        cuts += 1
                moving = daemon.status()
                assert moving is not None
                assert moving["searchable"] > 0.5 * len(stream.good), "it fell behind: the resets stopped it"
            with Asking(daemon) as after:
                counts = stream.assert_ledger(daemon)
        assert asking.failed + after.failed == 0
    return {
        "resets": cuts, "connections": proxy.connections, "searches": asking.answered + after.answered,
        "longest search_s": round(max(asking.longest_s, after.longest_s), 2), "clips": counts,
        "dead letters": len(stream.bad),
    }  # fmt: skip


def pair(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stream = Stream(broker, work, partitions=4)
    for name in "ab":
        (work / name).mkdir()
    survivor, victim = (DaemonProcess(work / name, stream.settings()) for name in "ab")
    gaps: list[float] = []
    with survivor, victim, stream.flowing(per_s=20):
        for daemon in (survivor, victim):
            wait(daemon, lambda s: s["searchable"] >= 100, "both learn")
        wait(victim, lambda s: (s["generation"] or 0) >= 2, "it has a checkpoint")
        victim.kill()
        killed, last, moved = time.monotonic(), survivor.status()["clips"]["learned"], time.monotonic()  # type: ignore[index]
        while time.monotonic() - killed < 30:
            learned = survivor.status()["clips"]["learned"]  # type: ignore[index]
            if learned != last:
                gaps.append(time.monotonic() - moved)
                last, moved = learned, time.monotonic()
            time.sleep(0.1)  # the pace of looking
    # What each has learned, as a reader of its last checkpoint sees it; no topic is read any more.
    empty = broker.create_topic(f"{stream.topic}-empty")
    return gaps_and_shares(stream, work, empty, gaps)


def gaps_and_shares(stream: Stream, work: Path, empty: str, gaps: list[float]) -> dict[str, Any]:
    with DaemonProcess(work / "a", stream.settings()) as survivor:
        sent = len(stream.good) + len(stream.bad)
        wait(survivor, lambda s: sum(s["offsets"].get(stream.topic, {}).values()) == sent, "the survivor has it all")
        a = found(survivor)
    quiet = stream.settings(**{"kafka.topics": [empty], "kafka.group_id": "nobody"})
    with DaemonProcess(work / "b", quiet) as victim:
        wait(victim, lambda s: s["searchable"], "the victim's checkpoint")
        b = found(victim)
    assert len(set(a)) == len(a)
    assert len(set(b)) == len(b)
    assert set(a) | set(b) == set(stream.good), f"{len(set(stream.good) - set(a) - set(b))} clips are with neither"
    return {
        "clips": len(stream.good), "survivor": len(a), "victim's checkpoint": len(b),
        "with both": len(set(a) & set(b)), "longest standstill_s": round(max(gaps), 1),
    }  # fmt: skip


def poison(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A third of the messages is invalid, in every way and for every code that there is."""
    import warnings

    from hypothesis.errors import NonInteractiveExampleWarning

    from tests.poison import KINDS, encoded, place

    warnings.simplefilter("ignore", NonInteractiveExampleWarning)
    stream, chance = Stream(broker, work), random.Random(arguments.seed)
    (work / "media").mkdir()
    with place(work / "media") as at:
        examples = {
            name: [encoded(strategy.example()) for _ in range(10)]
            for name, strategy in ((name, kind.values(at)) for name, kind in KINDS.items())
        }
        cheap = [name for name, kind in KINDS.items() if not kind.costly]
        costly = [name for name, kind in KINDS.items() if kind.costly]
        for n in range(arguments.messages):
            if n % 3 != 2:
                stream.clip()
                continue
            name = chance.choice(costly if n % 600 == 599 else cheap)
            stream.poison(chance.choice(examples[name]), KINDS[name].code, KINDS[name].headers)
        stream.flush()
        settings = stream.settings(**{"learner.batch_size": 32, "checkpoint.interval_clips": 1000}, **at.settings)
        return _poisoned(stream, work, settings, arguments.messages)


def _poisoned(stream: Stream, work: Path, settings: dict[str, Any], messages: int) -> dict[str, Any]:
    tenths: dict[int, tuple[int, int]] = {}
    with DaemonProcess(work, settings) as daemon:
        process = psutil.Process(daemon.process.pid)

        def watched(status: dict[str, Any]) -> bool:
            done = status["searchable"] + status["clips"]["dead_lettered"]
            tenths.setdefault(10 * done // messages, (_mib(process), sum(map(_mib, process.children(recursive=True)))))
            return bool(status["searchable"] == len(stream.good) and status["state"] == "idle")

        wait(daemon, lambda s: s["searchable"], "it learns")
        with Asking(daemon) as asking:
            wait(daemon, watched, "all was read")
            counts = stream.assert_ledger(daemon)
        assert asking.failed == 0
    flat = [daemon for tenth, (daemon, _) in tenths.items() if tenth > 1]
    assert max(flat) < 1.15 * min(flat), tenths
    return {
        "clips": counts, "codes": len(set(stream.bad.values())), "searches": asking.answered,
        "rss_mib of the daemon, its decoders, by tenth read": tenths,
    }  # fmt: skip


def _mib(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):  # a decoder that has just been killed
        return int(process.memory_info().rss // 2**20)
    return 0


def disk(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    stream, small = Stream(broker, work), work / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(small)], check=True)
    try:
        with DaemonProcess(small, stream.settings(**{"checkpoint.min_free_bytes": 64 * 2**20})) as daemon:
            until(daemon.status, "it answers", LONG_S)
            with stream.flowing(per_s=10), Asking(daemon) as asking:
                wait(daemon, lambda s: s["searchable"] >= 50, "it learns")
                ballast, free = small / "ballast", os.statvfs(small)
                ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 32 * 2**20))
                before = asking.failed  # while it started
                said = wait(daemon, lambda s: s["detail"], "it says so")["detail"]
                assert "checkpoint.min_free_bytes" in said, said
                full = daemon.status()["clips"]["learned"]  # type: ignore[index]
                time.sleep(5)  # full for a while
                assert daemon.status()["clips"]["learned"] == full  # type: ignore[index]
                failed = asking.failed - before
                assert failed == 0
                assert daemon.get("/readyz")
                ballast.unlink()
                wait(daemon, lambda s: s["clips"]["learned"] > full, "it goes on")
            counts = stream.assert_ledger(daemon)
            assert daemon.stop() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with (work / "refused.log").open("wb") as log:
            flags = ["--set", f"state_dir={small / 'state'}", "--set", "api.port=0"]
            refused = subprocess.run([sys.executable, "-m", "streamlearn", "run", *flags], stderr=log, check=False)
    finally:
        subprocess.run(["umount", str(small)], check=True)
    sentence = (work / "refused.log").read_text().strip().splitlines()[-1]
    return {"full": said, "searches failed": failed, "clips": counts, "read-only": [refused.returncode, sentence]}


def readonly(broker: KafkaBroker, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The state directory's file system meets an error: `mount -o remount,ro` refuses while a file is open to write."""
    stream, image, small = Stream(broker, work), work / "image", work / "small"
    small.mkdir()
    with image.open("wb") as file:
        file.truncate(600 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)

    @contextlib.contextmanager
    def mounted() -> Iterator[str]:
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(image), str(small)], check=True)
        found = subprocess.run(["findmnt", "-no", "SOURCE", str(small)], capture_output=True, text=True, check=True)
        try:
            yield Path(found.stdout.strip()).name
        finally:
            subprocess.run(["umount", str(small)], check=True)

    settings = stream.settings(state_dir=str(small / "state"))
    with mounted() as device:
        with DaemonProcess(work, settings) as daemon:
            until(daemon.status, "it answers", LONG_S)
            with stream.flowing(per_s=4), Asking(daemon) as asking:
                wait(daemon, lambda s: s["searchable"] >= 50, "it learns")
                before = asking.failed  # while it started
                Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("tried")
                said = wait(daemon, lambda s: s["detail"], "it says so")["detail"]
                committed = offsets(stream)
                time.sleep(5)  # read-only for a while
                failed = asking.failed - before
                assert failed == 0
                assert metric(daemon, "streamlearn_learner_ok") == 0
                state = daemon.get("/v1/status")["state"]
            ended = daemon.stop()
            assert offsets(stream) == committed
    subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, check=False)
    with mounted(), DaemonProcess(work, settings) as daemon:
        counts = stream.assert_ledger(daemon)
    return {
        "said": said,
        "state": state,
        "exit code": ended,
        "searches failed": failed,
        "clips": counts,
    }


def metric(daemon: DaemonProcess, name: str) -> float:
    """A series without labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics", timeout=20) as answer:
        (value,) = (line.split()[1] for line in answer.read().decode().splitlines() if line.startswith(f"{name} "))
    return float(value)


def offsets(stream: Stream) -> dict[int, int]:
    """What the group has committed at the broker."""
    with stream.broker.admin() as admin:
        found = admin.list_group_offsets(stream.topic)[stream.topic]
    return {tp.partition: each.offset for tp, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    faults = {f.__name__: f for f in (kills, away, slow, resets, pair, poison, disk, readonly)}
    parser.add_argument("fault", choices=faults)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--clips", type=int, default=1_500)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        broker = find_broker(Path(work))
        try:
            start = time.monotonic()
            seen = faults[arguments.fault](broker, Path(work), arguments)
            print(json.dumps({"fault": arguments.fault, **seen, "took_s": round(time.monotonic() - start)}), flush=True)
        finally:
            broker.close()


if __name__ == "__main__":
    main()
