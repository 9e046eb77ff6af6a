import json
import re
from pathlib import Path

import pytest

from refseg.config import load_recipe, make_recipe, recipe_differences, recipe_names
from refseg.errors import RecipeError

SMALLEST = '[model]\nimage_encoder = "tiny"\n[data]\nroot = "shards/toy"\n'


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST)
    return path


def test_every_shipped_recipe_loads_by_its_name() -> None:
    assert {"toy", "toy-quick", "fcnet-refcoco-r101", "fcnet-refcocog-swin"} <= set(recipe_names())
    for name in recipe_names():
        assert load_recipe(name).data.root


@pytest.mark.parametrize(
    ("name", "encoder", "num_tokens"),
    [
        ("fcnet-refcoco-r101", "clip_resnet101", 17),
        ("fcnet-refcocoplus-swin", "swin_base", 17),
        ("fcnet-refcocog-r101", "clip_resnet101", 22),
    ],
)
def test_the_papers_recipes_hold_the_papers_settings(name: str, encoder: str, num_tokens: int) -> None:
    recipe = load_recipe(name)

    assert (recipe.model.image_encoder, recipe.model.num_key_channels) == (encoder, 16)
    assert (recipe.data.input_size, recipe.data.num_tokens, recipe.data.sampling) == ((480, 480), num_tokens, "ref")
    train = recipe.train
    assert (train.optimizer, train.lr, train.weight_decay, train.epochs, train.milestones, train.gamma) == (
        "adam", 1e-4, 0.0, 50, (35,), 0.1,
    )  # fmt: skip
    assert (train.global_batch, train.dice_weight, train.clip_norm) == (64, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "encoder", "data"),
    [
        ("fcnet-refcoco-swin", "swin_base", {}),
        ("fcnet-refcocoplus-r101", "clip_resnet101", {"root": "shards/refcocoplus-unc"}),
        ("fcnet-refcocoplus-r50", "clip_resnet50", {"root": "shards/refcocoplus-unc"}),
        ("fcnet-refcocoplus-swin", "swin_base", {"root": "shards/refcocoplus-unc"}),
        ("fcnet-refcocog-r101", "clip_resnet101", {"root": "shards/refcocog-umd", "num_tokens": 22}),
        ("fcnet-refcocog-swin", "swin_base", {"root": "shards/refcocog-umd", "num_tokens": 22}),
    ],
)
def test_fcnets_recipes_differ_in_encoder_and_dataset_alone(name: str, encoder: str, data: dict[str, object]) -> None:
    expected = load_recipe("fcnet-refcoco-r101").to_dict()
    expected["model"]["image_encoder"] = encoder
    expected["data"] |= data

    assert load_recipe(name).to_dict() == expected


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("toy-quick", ["train.epochs", "train.checkpoint_every_steps", "train.val_every_epochs"]),
        ("cris-refcoco-r50", ["model.image_encoder"]),
    ],
)
def test_a_recipe_differs_from_the_one_it_extends_in_what_it_says(name: str, keys: list[str]) -> None:
    base = {"toy-quick": "toy", "cris-refcoco-r50": "cris-refcoco-r101"}[name]

    assert recipe_differences(load_recipe(base), load_recipe(name)) == keys


def test_every_recipe_says_in_its_header_how_it_is_run() -> None:
    for path in (Path(__file__).parents[1] / "refseg" / "configs").glob("*.toml"):
        header = re.split(r"^[^#]", path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
        assert f"refseg/train.py {path.stem} " in header, path
        assert "Hardware:" in header, path


def test_all_mistakes_are_listed_at_once_with_their_key_paths(recipe_file: Path) -> None:
    recipe_file.write_text(SMALLEST + '[train]\nlrr = 1\nseed = -1\n[modle]\nx = 1\n[eval]\nprotocol = "mine"\n')

    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file)

    assert str(error.value).splitlines() == [
        f"{recipe_file}: found 4 mistakes in the recipe",
        "  train.seed: found -1; input should be greater than or equal to 0",
        "  train.lrr: unknown key; did you mean lr?",
        "  eval.protocol: found 'mine'; input should be 'original', 'cris', 'lavt', 'lisa' or 'rela'",
        "  modle: unknown key; did you mean model?",
    ]


def test_a_missing_key_is_named(recipe_file: Path) -> None:
    recipe_file.write_text('[model]\nimage_encoder = "tiny"\n')

    with pytest.raises(RecipeError, match="data: missing; it has no default"):
        load_recipe(recipe_file)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.expressions_per_image=2", "only with sampling = \"images\", not 'ref'"),
        ("model.dim=130", "dim 130 is not a multiple of num_heads 8"),
        ("model.egm=false", "ecm: weights the emphases that egm generates"),
        ("train.lr=nan", r"train\.lr: found nan"),
        ("train.lr", "expected section.key=value"),
        ("train.lr=1\ntrain.epochs=2", "found 2 settings, expected one"),
        ("model.image_encoder.x=1", "image_encoder is a value, not a section"),
    ],
)
def test_a_wrong_value_is_refused(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr='1e-3'", "train.lr: found '1e-3'; expected a number (without quotes)"),
        ("train.lr=fast", "train.lr: found 'fast'; expected a number"),
        ("train.epochs=true", "train.epochs: found true; expected a whole number"),
        ("train.max_steps=5.0", "train.max_steps: found 5.0; expected a whole number"),
        ("train.compile=1", "train.compile: found 1; expected true or false"),
        ("model.egm='false'", "model.egm: found 'false'; expected true or false (without quotes)"),
        ("data.root=3", "data.root: found 3; expected a string"),
        ("train.milestones=3", "train.milestones: found 3; expected a list"),
        ("train.milestones=[true]", "train.milestones.0: found true; expected a whole number"),
        ("data.expressions_per_image=true",
         "data.expressions_per_image: found true; expected a whole number, or 'all'"),
        ("data=3", "data: found 3; expected a section"),
        ("model=fcnet", "model: found 'fcnet'; expected a section; its model is named by model.name, one of fcnet, "
         "crformer, lts, cris"),
        (f"train.epochs={'9' * 5000}",
         f"train.epochs: found '{'9' * 199}...; expected a whole number (without quotes)"),
        (f"train.lr={'[' * 50_000}", f"train.lr: found '{'[' * 199}...; expected a number"),
        ("model={name='lts', image_encoder='tiny', filter_size=true}",
         "model.filter_size: found true; expected a whole number"),
        ("model={name='lts', image_encoder='tiny', filter_size=1.0}",
         "model.filter_size: found 1.0; expected a whole number"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_than_tomls_is_refused(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file, [override])

    assert str(error.value) == f"{recipe_file}: found 1 mistake in the recipe\n  {message}"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("63", "data.input_size: found 63; expected a positive multiple of 32, or a list of two"),
        ("0", "data.input_size: found 0; expected a positive multiple of 32, or a list of two"),
        ("true", "data.input_size: found true; expected a positive multiple of 32, or a list of two"),
        ("large", "data.input_size: found 'large'; expected a positive multiple of 32, or a list of two"),
        ("[64, 100]", "data.input_size.1: found 100; input should be a multiple of 32"),
        ("[true, 64]", "data.input_size.0: found true; expected a whole number"),
    ],
)
def test_a_wrong_input_size_is_one_mistake_and_of_a_pair_the_wrong_side(
    recipe_file: Path, value: str, message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file, [f"data.input_size={value}"])

    assert str(error.value) == f"{recipe_file}: found 1 mistake in the recipe\n  {message}"


def test_a_recipe_may_begin_with_a_byte_order_mark(recipe_file: Path) -> None:
    expected = load_recipe(recipe_file)
    recipe_file.write_text(SMALLEST, encoding="utf-8-sig")

    assert load_recipe(recipe_file) == expected


def test_a_whole_number_will_do_for_a_fraction_and_a_list_for_a_tuple(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.lr=1", "train.gamma=1e-1", "train.milestones=[]", "train.trackers=[]"])

    assert (recipe.train.lr, type(recipe.train.lr), recipe.train.gamma) == (1.0, float, 0.1)
    assert (recipe.train.milestones, recipe.train.trackers) == ((), ())


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_survives_json(name: str) -> None:
    recipe = load_recipe(name)

    assert make_recipe(json.loads(json.dumps(recipe.to_dict())), where="saved") == recipe


def test_what_two_keys_may_not_be_together_is_listed_with_all_other_mistakes(recipe_file: Path) -> None:
    recipe_file.write_text(
        """
        [model]
        image_encoder = "tiny"
        dim = 130
        egm = false
        egm_heads = 7
        num_decoder_layers = 0
        [data]
        expressions_per_image = 2
        decode = "device"
        cache_gigabytes = 1
        [train]
        val_every_epochs = 0
        patience = 2
        lr = -1
        """
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe_file)

    assert str(error.value).splitlines()[1:] == [
        "  model.num_heads: dim 130 is not a multiple of num_heads 8",
        "  model.num_decoder_layers: found 0; input should be greater than or equal to 1",
        "  model.egm_heads: dim 130 is not a multiple of egm_heads 7",
        "  model.ecm: weights the emphases that egm generates: set egm = true, or both to false",
        "  data.root: missing; it has no default",
        "  data.expressions_per_image: has an effect only with sampling = \"images\", not 'ref'",
        '  data.cache_gigabytes: found 1, but decode = "device" cannot fill the cache of decoded images: '
        'set this to 0, or decode = "cpu"',
        "  train.lr: found -1; input should be greater than 0",
        "  train.patience: counts validations, but val_every_epochs is 0: set val_every_epochs, or leave this out",
    ]


@pytest.mark.parametrize(
    "wrong", [["model.dim='x'", "model.num_heads=7"], ["train.val_every_epochs=-1", "train.patience=2"]]
)
def test_a_key_is_not_blamed_for_one_that_is_wrong_by_itself(recipe_file: Path, wrong: list[str]) -> None:
    with pytest.raises(RecipeError, match="found 1 mistake in the recipe"):
        load_recipe(recipe_file, wrong)


def test_decoding_on_the_device_and_the_cache_of_decoded_images_exclude_each_other(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["data.decode=device"]).data.decode == "device"
    with pytest.raises(RecipeError, match=r"data\.cache_gigabytes: found 1, but decode = .* cannot fill the cache"):
        load_recipe(recipe_file, ["data.decode=device", "data.cache_gigabytes=1"])


def test_overrides_are_toml_values_or_bare_words(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["train.lr=3e-5", "data.root=a/b.c", "data.input_size=[64, 96]", "train.milestones=[3, 5]"]
    )

    assert recipe.train.lr == 3e-5
    assert recipe.data.root == "a/b.c"
    assert recipe.data.input_size == (64, 96)
    assert recipe.train.milestones == (3, 5)


def test_a_recipe_survives_json_and_differences_are_named_by_path(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    other = load_recipe(recipe_file, ["train.lr=1", "data.sampling=sentence"])

    assert make_recipe(recipe.to_dict(), where="saved") == recipe
    assert recipe_differences(recipe, recipe) == []
    assert recipe_differences(recipe, other) == ["data.sampling", "train.lr"]


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match=r"tpy: no such recipe; expected a TOML file or one of .*toy-quick"):
        load_recipe("tpy")


@pytest.mark.parametrize("text", ["[model\n", f"a = {'[' * 50_000}\n", f"a = {'9' * 5000}\n"])
def test_a_file_that_is_not_toml_is_named(recipe_file: Path, text: str) -> None:
    recipe_file.write_text(text)

    with pytest.raises(RecipeError, match=r"mine\.toml: not a TOML file"):
        load_recipe(recipe_file)


def test_a_recipe_that_extends_another_says_only_what_differs(recipe_file: Path) -> None:
    mine = recipe_file.with_name("own.toml")
    mine.write_text('extends = "mine.toml"\n[model]\nnum_key_channels = 4\n[train]\nlr = 1e-3\n')
    last = recipe_file.with_name("last.toml")
    last.write_text('extends = "own.toml"\n[train]\nseed = 7\n')

    recipe = load_recipe(last, ["train.epochs=2"])

    base = load_recipe(recipe_file)
    assert recipe_differences(base, recipe) == ["model.num_key_channels", "train.epochs", "train.lr", "train.seed"]
    assert load_recipe("fcnet-ablation-no-ecm").data == load_recipe("fcnet-refcocoplus-r50").data


def test_recipes_that_extend_each_other_or_nothing_known_are_refused(recipe_file: Path) -> None:
    one, two = recipe_file.with_name("one.toml"), recipe_file.with_name("two.toml")
    one.write_text('extends = "two.toml"\n')
    two.write_text('extends = "one.toml"\n')

    with pytest.raises(RecipeError, match=r"extends itself \(one.toml extends two.toml extends one.toml\)"):
        load_recipe(one)
    one.write_text('extends = "tpy"\n')
    with pytest.raises(RecipeError, match=r"one\.toml: extends tpy: no such recipe"):
        load_recipe(one)
    one.write_text("extends = 3\n")
    with pytest.raises(RecipeError, match=r"one\.toml: found extends = 3, expected the name of one recipe"):
        load_recipe(one)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("no-ecm", {"ecm": False}),
        ("no-egm", {"ecm": False, "egm": False}),
        *((f"nk{n}", {"num_key_channels": n}) for n in (1, 2, 4, 8, 24, 32)),
        *((f"nk{n}-no-ecm", {"num_key_channels": n, "ecm": False}) for n in (8, 24)),
    ],
)
def test_each_ablation_of_the_paper_differs_from_its_model_in_that_alone(name: str, changed: dict[str, object]) -> None:
    base, recipe = load_recipe("fcnet-refcocoplus-r50"), load_recipe(f"fcnet-ablation-{name}")

    assert recipe_differences(base, recipe) == [
        f"model.{key}" for key in type(base.model).model_fields if key in changed
    ]
    assert {key: getattr(recipe.model, key) for key in changed} == changed


def test_a_sentence_longer_than_can_be_rebuilt_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"num_tokens 30 is more than model.reconstruction_positions 22"):
        load_recipe("crformer-toy", ["data.num_tokens=30"])


def test_recipes_of_two_models_differ_in_their_keys() -> None:
    differing = recipe_differences(load_recipe("toy"), load_recipe("toy", ["model.name=cris"]))

    assert differing == ["model.name", *(f"model.{key}" for key in load_recipe("toy").model.model_dump() if key not in
                                         load_recipe("cris-toy").model.model_dump())]  # fmt: skip
