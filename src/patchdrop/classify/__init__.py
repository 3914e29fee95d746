"""From packed patches (and LR) to class logits."""
