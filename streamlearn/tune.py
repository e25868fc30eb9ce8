"""The detector that settings name, and where it would have suspected boundaries in a stream that was logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from streamlearn.detector import Detector, NoDetector
from streamlearn.drift import MeanShift
from streamlearn.drift_library import LibraryDetector, LibraryName, Strictness, river
from streamlearn.drift_log import Entry
from streamlearn.drift_vote import Vote
from streamlearn.errors import SettingsError
from streamlearn.settings import DriftSettings
from streamlearn.settings_learning import SignalName
from streamlearn.signals import Signal


@dataclass(frozen=True)
class Suspicion:
    """Where the detector would have alarmed.

    Attributes:
        clips: processed at that time.
        onset_clips: processed when the change began, as far as the detector can tell.
        logged: what became of it when the stream was learned: "drift", "refused", "seen" where the judge found a change
            by itself, which has no other onset here, or "" where nothing was suspected.
    """

    clips: int
    onset_clips: int
    score: float
    threshold: float
    logged: str


def detector_of(settings: DriftSettings) -> Detector:
    """The detector of the settings.

    Raises:
        SettingsError: it needs a library that is not installed.
    """
    if settings.detector == "none":
        return NoDetector()
    if settings.detector == "vote":
        members = [_member(settings, *vote.partition(":")[::2]) for vote in settings.vote]
        return Vote(members, quorum=settings.vote_quorum, window_batches=settings.vote_window_batches)
    return _member(settings, settings.detector, settings.signal)


def _member(settings: DriftSettings, name: str, signal: str) -> Detector:
    if name == "mean_shift":
        return mean_shift(settings)
    strictness = Strictness(settings.page_hinkley_threshold, settings.adwin_delta, settings.kswin_alpha)
    return LibraryDetector(
        cast(LibraryName, name),
        river(cast(LibraryName, name), strictness),
        Signal(
            cast(SignalName, signal or settings.signal),
            window=settings.window_batches,
            reference=settings.reference_batches,
        ),
        warmup_batches=settings.warmup_batches,
        cooldown_batches=settings.cooldown_batches,
    )


def mean_shift(settings: DriftSettings) -> MeanShift:
    """The default detector, by the settings."""
    windows = [(settings.window_batches, settings.reference_batches)]
    if settings.slow_window_batches and settings.frozen_judge:
        windows.append((settings.slow_window_batches, settings.slow_reference_batches))
    return MeanShift(
        windows=windows,
        threshold=settings.threshold,
        rows_per_false_alarm=settings.clips_per_false_boundary,
        warmup_batches=settings.warmup_batches,
        cooldown_batches=settings.cooldown_batches,
    )


def replay(entries: Sequence[Entry], settings: DriftSettings) -> tuple[list[Suspicion], list[float]]:
    """Give a logged stream to a detector of other settings.

    Where the frozen judge refused at that very batch when the stream was learned, or saw a change by itself, it is
    taken to do so again, unless these settings have none; elsewhere nobody can ask it, and the suspicion stands.

    Returns:
        The suspicions, and the score of every batch.
    """
    detector, found, scores = detector_of(settings), [], []
    for i, entry in enumerate(entries):
        if entry.operator:
            detector.restart()
        detector.take(entry.batch, entry.measured)
        scores.append(detector.score)
        if detector.drift_detected:
            onset = entries[max(0, i - detector.onset_batches_ago)].clips
            found.append(Suspicion(entry.clips, onset, detector.score, detector.threshold, entry.outcome))
            if entry.outcome == "refused" and settings.frozen_judge:
                detector.refuse()
        elif entry.outcome == "seen" and settings.frozen_judge:
            found.append(Suspicion(entry.clips, entry.clips, detector.score, detector.threshold, entry.outcome))
            detector.restart()
    return found, scores


def plot(entries: Sequence[Entry], scores: Sequence[float], found: Sequence[Suspicion], path: Path) -> None:
    """Draw scores, suspicions and what was logged.

    Raises:
        SettingsError: matplotlib is not installed, or cannot write this file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([e.clips for e in entries], [e.score for e in entries], color="0.7", label="score, as logged")
    axes.plot([e.clips for e in entries], scores, label="score, by these settings")
    for mark in found:
        axes.axvline(mark.clips, color="tab:red", linestyle=":")
    for entry in entries:
        if entry.outcome in ("drift", "seen"):
            axes.axvline(entry.clips, color="0.5", linewidth=0.5)
    axes.set(xlabel="clips", ylabel="score", yscale="log", title="red: suspected by these settings; grey: as logged")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # the latter where the name ends in no format that it knows
        raise SettingsError(f"--plot {path}: {getattr(error, 'strerror', None) or error}; name another file") from error
