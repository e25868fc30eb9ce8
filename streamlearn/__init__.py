"""Learns continually from a stream of video-caption pairs and answers text-to-video search the whole time.

Importing this package is cheap on purpose: decoder child processes import it, and they need no torch.
"""

__version__ = "0.1.0"
