"""The benchmark of continual video-language learning: streams, methods, trials and their report."""
