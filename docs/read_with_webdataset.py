"""Reads images, masks and tokens from shards with plain WebDataset: run it on a tar, no refseg needed."""

import sys

import numpy as np
import webdataset as wds

for sample in wds.WebDataset(sys.argv[1], shardshuffle=False).decode("rgb8"):
    image = sample["jpg"]  # (H, W, 3) uint8
    for ref in sample["json"]["refs"]:
        (height, width), counts = ref["mask"]["size"], ref["mask"]["counts"]
        mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T  # (H, W), 1 inside the object
        for sentence in ref["sentences"]:
            target = mask if sentence["exists"] else np.zeros_like(mask)  # a sentence may name nothing in the image
            print(
                sample["__key__"], image.shape, ref["ref_id"], target.sum(), sentence["sent_id"], sentence["token_ids"]
            )
