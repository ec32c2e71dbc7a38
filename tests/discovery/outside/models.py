"""Tiny models of transformers with random weights, saved as folders."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 8,
}


def save_depth_model(folder):
    """Save a model of metric depth."""
    torch.manual_seed(0)
    transformers.GLPNForDepthEstimation(transformers.GLPNConfig(**SMALL)).save_pretrained(folder)
    transformers.GLPNImageProcessor().save_pretrained(folder)
    return str(folder)


def save_class_model(folder, classes):
    """Save a model of semantic segmentation."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(**SMALL, id2label=dict(enumerate(classes)), num_labels=len(classes))
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(folder)
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)
