"""The evaluation table: one row per sentence, from which every score is computed."""

import pyarrow as pa

ROWS_SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),  # with its partition: refcoco/unc
        ("split", pa.string()),
        ("ref_id", pa.int64()),  # the ref the sentence was written for
        ("target_ref_id", pa.int64()),  # the ref it was scored against: another one only where sentences are shuffled
        ("sent_id", pa.int64()),
        ("image_id", pa.int64()),
        ("sentence", pa.string()),
        ("height", pa.int32()),  # of the masks that were compared, pixels
        ("width", pa.int32()),
        ("num_tokens", pa.int32()),  # BPE ids with SOS and EOS before any cut
        ("category", pa.string()),  # of the target
        ("intersection", pa.int64()),  # pixels, as all four
        ("union", pa.int64()),
        ("predicted_area", pa.int64()),
        ("target_area", pa.int64()),
        ("no_target", pa.bool_()),
    ]
)
"""Rows are in the order of the dataset's rows, then of the ref's sentences."""

PREDICTION_FIELD = pa.field("predicted_counts", pa.list_(pa.uint32()))
"""Where asked for: COCO's uncompressed run lengths of the prediction, for `height` and `width` of the row."""
