"""``python -m htt_lightning``."""

from htt_lightning.cli import main

if __name__ == "__main__":
    main()
