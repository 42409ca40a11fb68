"""Telling the classes of images: targets are labels, outputs logits."""
