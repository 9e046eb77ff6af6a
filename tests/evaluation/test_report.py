import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from accelerate import Accelerator
from markdown_it import MarkdownIt

from refseg.data.index import ManifestIndex
from refseg.data.transforms import Geometry
from refseg.errors import DatasetError, ResultsError
from refseg.evaluation.evaluate import evaluate_model
from refseg.evaluation.examples import choose_examples
from refseg.evaluation.explanation import SentenceExplanation
from refseg.evaluation.origin import Origin, read_origin
from refseg.evaluation.protocols import ORIGINAL
from refseg.evaluation.report import Report, RunRecord, build_report
from refseg.evaluation.results import Results, find_results, load_results, save_results
from refseg.evaluation.rows import RowFacts
from refseg.sealed import seal

RUN = RunRecord(
    name="my <run>",
    folder="runs/my run",
    evaluation="runs/my run/evaluation",
    metrics=[],
    recipe={"model": {"name": "fcnet", "image_weights": ""}},
    environment={},
)


@pytest.fixture
def index(write_stripes: Callable[..., Path]) -> ManifestIndex:
    """Three pictures: found, half found, and missed."""
    pictures = [
        {"size": (32, 64), "stripes": {"red": (0, 16)}, "refs": [((0, end), [f"{text} red"])]}
        for end, text in ((16, "the <b>"), (32, "half"), (16, "too long to find: large and not"))
    ]
    pictures[2]["stripes"] = {"blue": (0, 16)}
    return ManifestIndex.open(write_stripes(*pictures), ["val"])


@pytest.fixture
def results(index: ManifestIndex, colour_model: Any) -> Results:
    rows = evaluate_model(
        colour_model,
        index,
        accelerator=Accelerator(cpu=True),
        geometry=Geometry(kind="letterbox", size=(32, 64)),
        num_tokens=12,
        images_per_batch=3,
        save_predictions=True,
    )
    origin = read_origin({
        "checkpoint": "run/step-1", "step": 1200, "trained_on": "toy/refseg", "trained_on_digest": "a" * 64,
        "data": "shards/toy", "dataset": "toy/refseg", "dataset_digest": "b" * 64, "split": "val",
    })  # fmt: skip
    return Results(rows=rows, origin=origin)


def changed(results: Results, **fields: object) -> Origin:
    """Return the origin of results that is read from a file with these fields."""
    return read_origin({**results.origin.to_json(), **fields})


def build(results: list[Results], index: ManifestIndex | None = None, explainers: Any = None) -> Report:
    indexes = {} if index is None else {"toy/refseg val": index}
    written_at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    return build_report(RUN, results, indexes, written_at=written_at, explainers=explainers)


def test_examples_are_the_best_the_worst_and_some(index: ManifestIndex, results: Results) -> None:
    groups = choose_examples(results.rows, ORIGINAL, index, number=2)

    assert [group.name for group in groups] == ["Best", "Worst", "Random"]
    assert [example.iou for example in groups[0].examples] == [1.0, 0.5]
    assert [example.iou for example in groups[1].examples] == [0.0, 0.5]
    assert len(groups[2].examples) == 2
    assert groups == choose_examples(results.rows, ORIGINAL, index, number=2)


def test_an_example_says_in_words_what_it_shows(index: ManifestIndex, results: Results) -> None:
    best = choose_examples(results.rows, ORIGINAL, index, number=1)[0].examples[0]

    assert "the target covers 25.0%, the prediction 25.0%" in best.alt


def told(words: str, **parts: Any) -> Any:
    """Return an explainer with the same explanation for every sentence."""
    missing = {"word_weights": None, "alpha": None, "key_maps": None, "location": None}
    return lambda *asked: SentenceExplanation(words=tuple(words.split()), **{**missing, **parts})


@pytest.mark.slow
def test_words_are_shaded_by_their_attention_where_a_model_explains(index: ManifestIndex, results: Results) -> None:
    weights = np.array([[0.0, 0.5, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    explain = told("[SOS] <b> red [EOS]", word_weights=weights)
    example = choose_examples(results.rows, ORIGINAL, index, number=1, explain=explain)[0].examples[0]

    assert example.words == (("[SOS]", 0.0), ("<b>", 0.75), ("red", 0.125), ("[EOS]", 0.125))
    assert example.location == ""
    page = build([results], index, {"run/step-1": explain}).html
    assert '<span style="--shade: 60%" title="&lt;b&gt;: 75.00 % of the attention">&lt;b&gt;</span>' in page
    assert '<span style="--shade: 10%" title="red: 12.50 % of the attention">red</span>' in page
    assert "shade of a word" in page
    for plain in (build([results], index), build([results], index, {"run/step-2": explain})):
        assert "--shade:" not in plain.html
        assert "shade of a word" not in plain.html


def test_a_position_prior_is_shown_below_the_picture(index: ManifestIndex, results: Results) -> None:
    page = build([results], index, {"run/step-1": told("dog", location=np.zeros((4, 8)))}).html

    assert 'alt="Where the model located “half red” before it drew the mask"' in page
    assert "--shade:" not in page


def test_words_of_others_are_shown_and_not_run(index: ManifestIndex, results: Results) -> None:
    page = build([results], index).html

    assert "my &lt;run&gt;" in page
    assert "the &lt;b&gt; red" in page
    assert "<b> red" not in page


def test_scores_stand_beside_their_rules_on_the_page_and_in_markdown(index: ManifestIndex, results: Results) -> None:
    report = build([results], index)

    # Unions of 16, 32 and 16 columns, of which 16, 16 and none are found.
    assert results.scores.overall_iou == 0.5
    for text in (report.html, report.markdown):
        assert "50.00" in text
        assert all(
            rule.replace(">", "&gt;").replace("'", "&#39;") in text or rule in text for rule in results.scores.rules()
        )
        assert "step" in text
        assert "2026-01-02 03:04 UTC" in text


def test_a_page_without_examples_says_how_to_get_them(results: Results) -> None:
    assert "<code>refseg report &#39;runs/my run&#39; --data DIR" in build([results]).html

    bare = replace(results, rows=results.rows.drop_columns(["original_predicted_counts"]))
    assert (
        "<code>refseg evaluate run/step-1 --data shards/toy --split val --protocol original "
        "--out &#39;runs/my run/evaluation&#39; --save-predictions\nrefseg report &#39;runs/my run&#39;\n</code>"
    ) in build([bare]).html

    given = replace(bare, origin=read_origin({**results.origin.to_json(), "predictions": "masks.jsonl"}))
    assert (
        "<code>refseg score masks.jsonl --data shards/toy --split val --protocol original "
        "--out &#39;runs/my run&#39; --save-predictions\nrefseg report &#39;runs/my run&#39;\n</code>"
    ) in build([given]).html


def test_rules_keep_the_letters_of_metric_names(results: Results) -> None:
    page = build([results]).html

    assert "<li>oIoU: sum of intersections" in page
    assert "text-transform" not in page.split(".rules")[-1].split("</style>")[0]


def test_results_come_back_as_they_were_with_controls_last(results: Results, tmp_path: Path) -> None:
    facts = replace(RowFacts.of(results.rows), sentence_order="shuffled")
    control = replace(results, rows=facts.attach(results.rows))
    save_results(tmp_path, control)
    save_results(tmp_path, replace(results, origin=replace(results.origin, split="testA")))
    save_results(tmp_path, results)

    loaded = load_results(tmp_path)

    assert [(found.origin.split, found.is_control) for found in loaded] == [
        ("val", False), ("testA", False), ("val", True),
    ]  # fmt: skip
    assert loaded[0].origin == results.origin
    assert loaded[0].rows.equals(results.rows)
    assert loaded[0].scores == results.scores


def test_results_without_their_rows_are_refused(results: Results, tmp_path: Path) -> None:
    save_results(tmp_path, results).unlink()

    with pytest.raises(
        ResultsError, match=r"scores-toy\.refseg-val\.json: cannot be read with its rows .* run `refseg evaluate` again"
    ):
        load_results(tmp_path)
    rows = save_results(tmp_path, results)
    pq.write_table(results.rows.slice(1), rows)
    with pytest.raises(
        ResultsError, match=r"cannot be read .*rows-toy\.refseg-val\.parquet was changed after it was written"
    ):
        load_results(tmp_path)
    with pytest.raises(ResultsError, match=r"found no scores-\*\.json"):
        load_results(tmp_path / "elsewhere")


@pytest.mark.parametrize("key", ["step", "dataset_digest", "scores", "split", "rows_xxh3_128", "content_xxh3_128"])
def test_no_change_of_written_scores_is_accepted(results: Results, tmp_path: Path, key: str) -> None:
    save_results(tmp_path, results)
    path = tmp_path / "scores-toy.refseg-val.json"
    fields = json.loads(path.read_text())
    for changed in ({**fields, key: None}, {name: value for name, value in fields.items() if name != key}):
        path.write_text(json.dumps(changed))
        with pytest.raises(ResultsError, match=r"scores-toy\.refseg-val\.json: cannot be read .* again"):
            load_results(tmp_path)


def save_by_another_writer(folder: Path, results: Results, rows: pa.Table) -> None:
    """Write the results' files with other rows and valid hashes."""
    path = save_results(folder, results)
    pq.write_table(rows, path)
    scores = folder / "scores-toy.refseg-val.json"
    fields = {**json.loads(scores.read_text()), "rows_xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes())}
    scores.write_text(json.dumps(seal(fields)))


FACTS = '{"protocols": [], "mask_rule": "union", "sentence_order": "own", "num_left_out": 0}'


@pytest.mark.parametrize(
    "facts", ["[" * 100_000, "3", '["protocols"]', FACTS, FACTS.replace("[]", '[{"name": "cris"}]')]
)
def test_facts_of_another_writer_are_refused_where_their_file_is_known(
    results: Results, tmp_path: Path, facts: str
) -> None:
    save_by_another_writer(tmp_path, results, results.rows.replace_schema_metadata({"refseg": facts}))
    with pytest.raises(
        ResultsError, match=r"-val\.json: cannot be read .*the facts of the rows' evaluation do not fit"
    ):
        load_results(tmp_path)


@pytest.mark.parametrize(("name", "value", "found"), [
    ("sentence", None, "column sentence: found rows without a value"),
    ("original_union", -5, "the pixel counts of protocol original contradict each other"),
    ("original_intersection", 10**15, "the pixel counts of protocol original contradict each other"),
    ("original_union", "5", "column original_union: found string, expected int64"),
    ("image_id", ..., "column image_id: found no such column, expected int64"),
])  # fmt: skip
def test_rows_of_another_writer_are_checked_before_they_are_scored(
    results: Results, tmp_path: Path, name: str, value: Any, found: str
) -> None:
    position, kind = results.rows.schema.get_field_index(name), results.rows.schema.field(name).type
    rows = results.rows.drop_columns([name])
    if value is not ...:
        values = pa.array([value] * len(rows), pa.string() if isinstance(value, str) else kind)
        rows = rows.add_column(position, name, values)
    save_by_another_writer(tmp_path, results, rows)
    with pytest.raises(ResultsError, match=found):
        load_results(tmp_path)


@pytest.mark.parametrize(("key", "value"), [
    ("dataset", 3), ("split", None), ("data", 5), ("step", "x"), ("leak_check", {"num_shared": "all"}),
    ("leaks", [1]), ("ancestors", [{"path": "x"}]), ("predictions", 1),
])  # fmt: skip
def test_an_origin_of_another_writer_is_checked(results: Results, tmp_path: Path, key: str, value: Any) -> None:
    save_results(tmp_path, results)
    path = tmp_path / "scores-toy.refseg-val.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), key: value})))
    with pytest.raises(ResultsError, match=rf"scores-toy\.refseg-val\.json: {key}.*; run `refseg evaluate` again"):
        load_results(tmp_path)


def test_results_lie_in_the_folder_or_in_evaluation_within_it_but_not_in_both(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"found no scores-\*\.json here or in .*evaluation; run `refseg evaluate`"):
        find_results(tmp_path)
    save_results(tmp_path / "evaluation", results)

    assert find_results(tmp_path) == tmp_path / "evaluation"
    assert find_results(tmp_path / "evaluation") == tmp_path / "evaluation"
    save_results(tmp_path, results)
    with pytest.raises(
        ResultsError, match=r"found scores-\*\.json here and in .*evaluation, expected them in one of the two"
    ):
        find_results(tmp_path)


def test_a_report_says_how_to_write_the_results_again_where_they_lie(results: Results) -> None:
    theirs = replace(results, origin=read_origin({**results.origin.to_json(), "predictions": "masks.jsonl"}))
    for evaluation, evaluate_to, score_to in (("a/evaluation", "a/evaluation", "a"), ("other", "other", "other")):
        record = replace(RUN, evaluation=evaluation)
        written_at = datetime(2026, 1, 2, tzinfo=UTC)
        for given, out in ((results, evaluate_to), (theirs, score_to)):
            assert f"--out {out} --save" in build_report(record, [given], {}, written_at=written_at).markdown


def test_a_report_names_the_models_that_the_weights_come_from(results: Results) -> None:
    ancestor = {
        "path": "runs/toy",
        "step": 1200,
        "dataset": "mix/all",
        "dataset_digest": 32 * "ab",
        "leaks_allowed": True,
        "leaks": {"refcoco/unc": {"refcoco/unc testA": 1}},
        "weights_sha256": "",
    }

    report = build([replace(results, origin=changed(results, ancestors=[ancestor]))])

    said = "runs/toy at step 1,200, trained on mix/all, digest abababababababab, LEAKS ALLOWED"
    assert said in report.html
    assert said in report.markdown


def test_leaks_that_were_allowed_stand_beside_the_scores_in_red(results: Results) -> None:
    leaks = {"refcoco/unc": {"toy/refseg val": 3, "toy/refseg testA": 1}, "refcocog/umd": {"toy/refseg testA": 1}}
    facts = {"trained_on": "mix/all", "leaks_allowed": True, "leaks": leaks}

    leaky = build([replace(results, origin=changed(results, **facts))])

    warning = (
        "LEAKS ALLOWED: mix/all was mixed with training images that are in evaluation splits of its members; "
        "images of toy/refseg val trained on: 3 by way of refcoco/unc; in all, refcoco/unc has 3 training images in "
        "toy/refseg val, 1 in toy/refseg testA; refcocog/umd has 1 training image in toy/refseg testA"
    )
    assert f'<p class="leak" role="note">{warning}</p>' in leaky.html
    assert "color: var(--danger)" in leaky.html
    assert f"- **{warning}**" in leaky.markdown
    assert "mix/all, digest aaaaaaaaaaaaaaaa, LEAKS ALLOWED" in leaky.markdown
    for report in (build([results]), build([replace(results, origin=changed(results, leaks_allowed=False))])):
        assert "LEAKS" not in report.html + report.markdown
        assert '<p class="leak"' not in report.html


def test_a_split_that_nothing_leaked_from_says_so_too(results: Results) -> None:
    facts = {"trained_on": "mix/all", "leaks_allowed": True, "leaks": {}}

    page = build([replace(results, origin=changed(results, **facts))]).markdown

    assert "none of toy/refseg val is known to be among them; in all, no training image is in an evaluation" in page


@pytest.mark.parametrize(
    "evil", ["![x](http://127.0.0.1:1/beacon.png) <img src=x onerror=alert(1)> |a|b|", "# one\n\n| two |", "**x**"]
)
def test_a_category_and_names_of_others_stay_texts_in_markdown(results: Results, evil: str) -> None:
    place = results.rows.column_names.index("category")
    rows = results.rows.set_column(place, results.rows.field(place), [[evil] * len(results.rows)])
    origin = changed(results, dataset=evil, checkpoint=evil, split=evil)
    run = replace(RUN, name=evil, recipe={"model": {"name": evil}}, environment={evil: evil})

    report = build_report(run, [replace(results, rows=rows, origin=origin)], {}, written_at=datetime.now(UTC))

    line = " ".join(evil.split())
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(report.markdown)
    texts = [token for token in tokens if token.type == "inline"]
    parts = [part for token in texts for part in token.children or ()]
    assert {token.type for token in tokens if "html" in token.type} == set()
    assert {part.type for part in parts} <= {"text", "text_special"}
    said = ["".join(part.content for part in token.children or ()) for token in texts]
    assert said[0].startswith(f"{line} on {line} {line}, ")
    assert said.count(line) == 5  # the category, the checkpoint, the recipe, a fact and its name
    assert f"{line} {line}" in said
    assert "<img src=x" not in report.markdown + report.html


def test_an_example_whose_picture_cannot_be_read_is_named_and_shown_without_it(
    index: ManifestIndex, results: Results, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def decode(self: ManifestIndex, image: int) -> Any:
        raise DatasetError("val-00000.tar: image 1: cannot be decoded")

    monkeypatch.setattr(ManifestIndex, "decode_image", decode)

    page = build([results], index).html

    assert page.count('<figure class="example"') == 9
    assert "val-00000.tar: image 1: cannot be decoded: the example is shown without its picture" in caplog.text
