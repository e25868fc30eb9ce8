"""What a step of the learner costs on pretrained towers: what is learned of them, by which method, how much the update.

    .venv/bin/python -m benchmarks.step                                        # ViT-S/16 and MiniLM, CPU
    .venv/bin/python -m benchmarks.step --towers base --device cuda --batch 32  # ViT-B/16 and BERT-base

The towers have these architectures and random weights, so nothing is fetched. All cases take turns within one process,
`--repeats` times; medians are reported. The update is what the method does with its copies after the optimizer's step,
the refresh what `search.refresh_share` has of the index encoded anew after one, both as shares of the step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from streamlearn.encoders import Towers
from streamlearn.learner import Learner
from streamlearn.settings import LearnerSettings, SearchSettings
from tests.models import WORDS, save_tokenizer

REFRESH_SHARE = SearchSettings().refresh_share
#: Width, heads, and layers of the video and of the text tower.
TOWERS = {"small": (384, 6, 12, 6), "base": (768, 12, 12, 12)}


def save_towers(folder: Path, size: str) -> tuple[str, str]:
    """Two folders, as a download would leave them."""
    import transformers as hf

    width, heads, deep, text_deep = TOWERS[size]
    shape = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
    hf.ViTModel(hf.ViTConfig(**shape, num_hidden_layers=deep)).save_pretrained(folder / "vit")
    text = hf.BertConfig(**shape, num_hidden_layers=text_deep, vocab_size=2 * len(WORDS))
    hf.BertModel(text).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert")
    return str(folder / "vit"), str(folder / "bert")


class Case:
    """One learner, and the times of its steps and updates in seconds."""

    def __init__(self, towers: Towers, method: str, trainable: str, device: torch.device, batch: int) -> None:
        towers.train_only(trainable)
        settings = LearnerSettings(method=method, global_pair=method == "bmu", batch_size=batch)
        self.learner = Learner(towers, settings, device)
        self.device = device
        self.steps: list[float] = []
        self.updates: list[float] = []
        self.refreshes: list[float] = []
        self._update = self.learner.method.update
        self.learner.method.update = self._timed_update  # type: ignore[method-assign]

    def _timed_update(self, clips: int) -> None:
        start = self._now()
        self._update(clips)
        self.updates.append(self._now() - start)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, frames: np.ndarray, captions: list[list[str]], ids: list[str]) -> None:
        """One step."""
        start = self._now()
        self.learner.step(frames, captions, ids)
        self.steps.append(self._now() - start)
        some = np.resize(frames, (self.learner.clips_within(REFRESH_SHARE), *frames.shape[1:]))
        start = self._now()
        self.learner.encode_video(some)
        self.refreshes.append(self._now() - start)


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", choices=TOWERS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cases", default="moco:all,moco:heads,bmu:all,bmu:lora,bmu:heads", help="METHOD:TRAINABLE,..."
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, rng = torch.device(given.device), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        names = save_towers(Path(folder), given.towers)
        cases = {
            case: Case(Towers(*names), *case.split(":"), device, given.batch)  # type: ignore[misc]
            for case in given.cases.split(",")
        }
    frames = rng.integers(0, 256, (given.batch, given.frames, 224, 224, 3), np.uint8)
    captions = [[" ".join(rng.choice(WORDS[4:], 12))] for _ in range(given.batch)]
    for turn in range(given.repeats + 1):
        for case in cases.values():
            case.step(frames, captions, [f"{turn}-{i}" for i in range(given.batch)])
    median = {name: statistics.median(case.steps[1:]) for name, case in cases.items()}
    facts = {
        "towers": given.towers, "device": str(device), "batch": given.batch, "frames": given.frames,
        "threads": given.threads, "torch": torch.__version__,
        "step_ms": {name: round(1e3 * value, 1) for name, value in median.items()},
        "clips_per_s": {name: round(given.batch / value, 2) for name, value in median.items()},
        "update_share": {
            name: round(statistics.median(case.updates[1:]) / median[name], 4) for name, case in cases.items()
        },
        "refresh_clips": {name: case.learner.clips_within(REFRESH_SHARE) for name, case in cases.items()},
        "refresh_share": {
            name: round(statistics.median(case.refreshes[1:]) / median[name], 3) for name, case in cases.items()
        },
    }  # fmt: skip
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
