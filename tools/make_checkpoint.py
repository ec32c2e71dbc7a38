"""Make the checkpoint in ``tests/checkpoints`` and print the predictions that its test expects.

Run it as ``python -m tools.make_checkpoint``.
"""

import lzma
import tempfile
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import HTTModule, HTTPredictor, __version__
from htt_lightning.tasks import Depth
from tests.tiny import tiny_data, tiny_trainer
from tests.training.test_loading import IMAGE

OUT = Path(__file__).parents[1] / "tests" / "checkpoints" / f"version_{__version__}.ckpt.xz"
NETWORK = {
    "backbone": "test_resnet",
    "backbone_options": {"channels": [4, 4, 4, 4], "stem_width": 4},
    "token_dim": 4,
    "dilations": [1, 2, 3],
}


def main() -> None:
    """Train for two epochs on twelve scenes, and keep the weights alone."""
    L.seed_everything(0)
    data = tiny_data(tasks=[Depth(num_bins=6), "edges"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep = ModelCheckpoint(folder, filename="last", save_weights_only=True)
        trainer = tiny_trainer(folder, callbacks=[keep], enable_checkpointing=True, max_epochs=2)
        trainer.fit(HTTModule(data.tasks, **NETWORK), data)
        path = folder / "last.ckpt"
        OUT.write_bytes(lzma.compress(path.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
        for task, values in HTTPredictor.from_checkpoint(path)(IMAGE).items():
            print(f'    "{task}": {torch.as_tensor(values).flatten()[::500].tolist()},')


if __name__ == "__main__":
    main()
