"""Scrapes one server without a pause: `python -m benchmarks.scraper HOST PORT`.

A line on standard input ends it; it prints how often it has scraped, and the series it saw last.
"""

from __future__ import annotations

import http.client
import sys
import threading


def main() -> int:
    """Returns the exit status."""
    host, port = sys.argv[1], int(sys.argv[2])
    ended = threading.Event()

    def end() -> None:
        sys.stdin.readline()
        ended.set()

    threading.Thread(target=end, daemon=True).start()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    scrapes, text = 0, b""
    while not ended.is_set() or not scrapes:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
        scrapes += 1
    series = sum(line.startswith(b"winnow_") for line in text.splitlines())
    print(scrapes, series)
    return 0


if __name__ == "__main__":
    sys.exit(main())
