"""The loader with a build of real pictures: each sentence once, with the mask and bytes of the source."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipelines.build import build_dataset
from pipelines.options import BuildOptions
from refseg import tokenizer
from refseg.data.index import ManifestIndex
from refseg.data.loader import RefLoader
from refseg.data.transforms import Geometry
from refseg.reading import Reading


@pytest.mark.parametrize(("dataset", "source"), [("refcoco/unc", "refcoco"), ("refcocog/google", "refcocog")])
def test_an_epoch_over_a_real_build(
    dataset: str, source: str, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = shared_data / "refer-mini"
    build_dataset(
        BuildOptions(dataset=dataset, annotations=annotations, out=tmp_path / "d", workers=1, accept_counts=True)
    )
    coco = COCO(annotations / source / "instances.json")
    capsys.readouterr()  # pycocotools prints
    built = json.loads((tmp_path / "d" / "refseg.json").read_text())
    index = ManifestIndex.open(tmp_path / "d", list({shard["split"] for shard in built["shards"]}))
    reading = Reading(
        geometry="letterbox", input_size=(96, 96), sampling="images", expressions_per_image="all", global_batch=3,
        num_tokens=40, remainder="pad",
    )  # fmt: skip
    geometry = Geometry.of(reading)
    loader = RefLoader(index, reading)

    seen = []
    for batch in loader:
        for i, (row, sentence) in enumerate(zip(batch.row_index.tolist(), batch.sentence_index.tolist(), strict=True)):
            ids = index.ids(row, sentence)
            name = coco.imgs[ids.image_id]["file_name"]
            path = annotations / "images/mscoco/images/train2014" / name
            assert index.read_image_bytes(int(index.row_image[row])) == path.read_bytes()

            picture = Image.open(path).convert("RGB")
            top, left, height, width = geometry.placed(picture.size[::-1])
            small = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
            image = batch.images[batch.image_index[i], :, top : top + height, left : left + width]
            assert np.abs(image.permute(1, 2, 0).numpy() - small).max() <= 1

            whole = Image.fromarray(index.target_mask(row))
            drawn = batch.masks[i, top : top + height, left : left + width].numpy()
            assert np.array_equal(drawn, np.array(whole.resize((width, height), Image.Resampling.NEAREST)))

            words = tokenizer.encode(index.text(row, sentence))
            assert batch.token_ids[i][batch.token_mask[i]].tolist() == list(tokenizer.truncate(words, 40))
            if not batch.is_pad[i]:
                seen.append(ids)

    assert len(set(seen)) == len(seen) == index.num_sentences
    known = {coco.annToMask(annotation).tobytes() for annotation in coco.anns.values()}
    masks = [np.ascontiguousarray(index.target_mask(row)).tobytes() for row in range(index.num_rows)]
    assert set(masks) <= known  # each ref of RefCOCO and RefCOCOg names one annotation
