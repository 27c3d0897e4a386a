"""Progress says bytes, rate and what is left, once a second."""

from __future__ import annotations

from runtime.images.progress import Progress


def test_bytes_rate_and_time_remaining() -> None:
    now_s = [0.0]
    lines: list[str] = []
    progress = Progress("image", 100 << 20, lines.append, clock=lambda: now_s[0])
    progress.had(20 << 20)
    for _ in range(8):
        now_s[0] += 0.5
        progress.add(10 << 20)
    assert len(lines) == 4
    assert lines[1] == "image: 60.0 of 100.0 MiB, 20.0 MiB/s, 2 s left"
