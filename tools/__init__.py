"""Programs that try the library in long runs: damaged files and killed processes."""
