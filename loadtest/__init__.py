"""How it holds: load tests on a live server (`live/`), and the simulator of a replica."""
