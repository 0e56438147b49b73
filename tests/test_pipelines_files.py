# Made from nbs/54_files.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import TopKRouter
from perceiver_moe_diffusion.pipelines.classify import ClassifierPipeline
from perceiver_moe_diffusion.pipelines.files import (
    FORMAT,
    LOADABLE,
    from_plain,
    from_pretrained,
    load_initial_weights,
    load_pipeline,
    pretrained_folders,
    save_pipeline,
    to_plain,
    upgraded,
)
from perceiver_moe_diffusion.pipelines.generate import GeneratorPipeline
from perceiver_moe_diffusion.tools.workflow import project_root

MODELS, DIFFUSION = "perceiver_moe_diffusion.models.", "perceiver_moe_diffusion.diffusion."
FEED_FORWARD = {
    "_target_": MODELS + "moe.build_moe", "_partial_": True, "num_experts": 4, "top_k": 2,
    "router": {"_target_": MODELS + "moe.TopKRouter", "_partial_": True},
    "experts": [{"_target_": MODELS + "moe.MLPExpert", "_partial_": True, "mult": 2}],
}
SETTINGS = {
    "model": {
        "_target_": MODELS + "denoiser.PerceiverDenoiser",
        "input_shape": [1, 8, 8], "num_classes": 10, "condition_dim": 32,
        "adapter": {"_target_": MODELS + "adapters.ConvAdapter", "_partial_": True, "dim": 32, "stem_channels": 16},
        "query": {"_target_": MODELS + "adapters.InputQuery", "_partial_": True},
        "core": {"_target_": MODELS + "perceiver.PerceiverIO", "_partial_": True,
                 "dim": 32, "num_latents": 4, "depth": 1, "num_heads": 2, "feed_forward": FEED_FORWARD},
    },
    "diffusion": {"_target_": DIFFUSION + "process.Diffusion", "timesteps": 100,
                  "schedule": {"_target_": DIFFUSION + "process.cosine", "_partial_": True}},
    "sampler": {"_target_": DIFFUSION + "sampling.DPMSolverPP", "steps": 4, "guidance_scale": 2.0},
}
NAMES = [str(i) for i in range(10)]


def parts(settings=SETTINGS, extra=()):
    "Denoiser, diffusion and sampler with fresh weights."
    torch.manual_seed(0)
    return [from_plain(to_plain(settings[name]), (*LOADABLE, *extra)) for name in ("model", "diffusion", "sampler")]


@pytest.fixture(scope="module")
def drawing():
    "A pipeline with fresh weights: enough for everything but beauty."
    return GeneratorPipeline(*parts(), NAMES)


def kept_model():
    "A model that version 0.3.1 wrote, and the images that it drew there."
    folder = project_root(Path(__file__).parent) / "tests" / "data" / "v0_3_1"
    return folder / "model", load_file(folder / "expected_images.safetensors")["images"]


def test_a_model_of_0_3_1_draws_the_images_that_it_drew():
    folder, expected = kept_model()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pipeline = load_pipeline(folder)
    assert type(pipeline) is GeneratorPipeline and type(pipeline.model) is PerceiverDenoiser
    assert pipeline.class_names == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert_close(pipeline.sample([3, 7], seed=4, steps=6), expected, atol=1e-5, rtol=0)  # machines round differently
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before, "an old file is never written to"


def test_a_file_of_a_version_that_is_not_known_is_refused(tmp_path):
    shutil.copytree(kept_model()[0], tmp_path / "later")
    for version, given in ((99, "99"), (0, "0"), ("1", "1"), (None, "None")):
        edit(tmp_path / "later", "version", version)
        refused(tmp_path / "later", f"model format version {given} is not possible; allowed: 1 to 2. Install the ver")


def test_old_names_of_classes_and_settings_become_the_new_ones():
    core = {"class": "PerceiverIO", "partial": True, "dim": 8}
    old = {"format": FORMAT, "version": 1, "class_names": ["Denoiser", "Pipeline"], "levels": 17,
           "model": {"class": "MixtureOfDenoisers", "image_shape": [1, 8, 8], "core": core,
                     "experts": [{"class": "Denoiser", "partial": True}, {"class": "Upscaler"}]},
           "diffusion": {"class": "Diffusion", "partial": False, "objective": "x0"}}
    before = copy.deepcopy(old)
    assert upgraded(old) == {
        "format": FORMAT, "version": 2, "class_names": ["Denoiser", "Pipeline"], "levels": 17,
        "pipeline": "GeneratorPipeline",  # the only kind that did not always say its name
        "model": {"class": "MixtureOfDenoisers", "input_shape": [1, 8, 8], "core": core,
                  "experts": [{"class": "PerceiverDenoiser", "partial": True}, {"class": "Upscaler"}]},
        "diffusion": {"class": "Diffusion", "partial": False, "prediction_type": "x0"},
    }
    assert old == before


@pytest.mark.parametrize("kind, now", [("Pipeline", "GeneratorPipeline"), ("ClassifierPipeline", "ClassifierPipeline"),
                                       ("UpscalerPipeline", "UpscalerPipeline")])
def test_a_kind_of_pipeline_keeps_its_kind(kind, now):
    assert upgraded({"version": 1, "pipeline": kind})["pipeline"] == now


def test_the_shapes_of_image_and_text_stood_in_a_row():
    old = {"version": 1, "model": {"class": "Classifier", "image_shape": [3, 64, 48, 20]}}
    assert upgraded(old)["model"] == {"class": "Classifier", "input_shape": {"image": [3, 64, 48], "text": [20]}}
    assert upgraded({"version": 1, "model": {"image_shape": [20]}})["model"] == {"input_shape": [20]}, "a text alone"


def test_what_is_of_this_version_is_left_alone():
    about = {"version": 2, "model": {"class": "Denoiser", "objective": "v", "input_shape": [1, 2, 3, 4]}}
    assert upgraded(copy.deepcopy(about)) == about


@pytest.fixture
def saved(tmp_path):
    "A folder with a whole and healthy model."
    model, *_ = parts()
    save_pipeline(tmp_path, model, SETTINGS, NAMES, levels=17)
    return tmp_path


def refused(folder, said, **kwargs):
    "Loading must end in one line that says `said`."
    with pytest.raises(UserError) as error:
        load_pipeline(folder, **kwargs)
    assert said in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_a_saved_model_draws_the_same_images_to_the_last_bit(saved, drawing):
    again = load_pipeline(saved)
    assert not again.model.training and again.sampler == drawing.sampler and again.class_names == NAMES
    for settings in ({}, {"guidance_scale": 0.0, "steps": 7}, {"guidance_scale": 4.5, "guidance_rescale": 0.5}):
        assert torch.equal(again.sample([0, 9, 5], seed=11, **settings), drawing.sample([0, 9, 5], seed=11, **settings))
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("router", ["NoisyTopKRouter", "BiasBalancedRouter"])
def test_every_router_comes_back(tmp_path, router):
    settings = copy.deepcopy(SETTINGS)
    settings["model"]["core"]["feed_forward"]["router"]["_target_"] = "perceiver_moe_diffusion.models.moe." + router
    model, diffusion, sampler = parts(settings)
    for name, buffer in model.named_buffers():
        if name.endswith("router.bias"):
            buffer.copy_(torch.linspace(-1, 1, 4))  # a bias that was learned is part of the model
    save_pipeline(tmp_path / "new" / "folder", model, settings, NAMES, levels=17)
    expected = GeneratorPipeline(model, diffusion, sampler, NAMES).sample([1, 2])
    assert torch.equal(load_pipeline(tmp_path / "new" / "folder").sample([1, 2]), expected)


def test_a_classifier_comes_back_as_one_and_predicts_the_same(tmp_path):
    core = {"_target_": MODELS + "perceiver.PerceiverIO", "_partial_": True, "dim": 16, "num_latents": 3, "depth": 1,
            "num_heads": 2}
    node = {"_target_": MODELS + "classifier.Classifier", "input_shape": [1, 8, 8], "num_classes": 10, "core": core,
            "query_dim": 16}
    model = from_plain(to_plain(node), LOADABLE)
    save_pipeline(tmp_path, model, {"model": node}, NAMES, levels=17, kind="ClassifierPipeline")
    again, inputs = load_pipeline(tmp_path), torch.randn(3, 1, 8, 8)
    assert type(again) is ClassifierPipeline
    assert torch.equal(again.predict(inputs), ClassifierPipeline(model, NAMES).predict(inputs))


def test_a_kind_of_pipeline_that_is_not_known_is_refused(saved):
    edit(saved, "pipeline", "system")
    refused(saved, "a pipeline of the kind 'system' is not possible; allowed: ClassifierPipeline, GeneratorPipeline")


def test_a_model_of_ones_own_is_built_without_a_sketch_and_checked_all_the_same(saved, monkeypatch):
    expected, weights = load_pipeline(saved).sample([1, 2]), load_file(saved / "model.safetensors")
    monkeypatch.delattr("perceiver_moe_diffusion.pipelines.files.on_meta_device")
    assert torch.equal(load_pipeline(saved, foreign=False).sample([1, 2]), expected)
    del weights["core.latents"]
    save_file(weights, saved / "model.safetensors")
    refused(saved, "missing: ['core.latents']", foreign=False)


def test_loading_leaves_the_global_random_numbers_alone(saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_pipeline(saved)
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture
def older_safetensors(monkeypatch):
    "Up to version 0.7 safetensors wrote in place; what is promised here must not depend on it."
    from safetensors.torch import save

    def write_in_place(tensors, filename, metadata=None):
        Path(filename).write_bytes(save(tensors, metadata))
    monkeypatch.setitem(save_pipeline.__globals__, "save_file", write_in_place)


def test_a_model_that_cannot_be_written_leaves_the_old_one_whole(saved, older_safetensors):
    import resource

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other, *_ = parts()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["model.safetensors"]) // 2, limits[1]))  # as on a full disk
    try:
        with pytest.raises((OSError, SafetensorError, UserError)):
            save_pipeline(saved, other, SETTINGS, NAMES, levels=17)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_model_is_written_beside_the_old_one_and_takes_its_place(saved, name, older_safetensors, tmp_path_factory):
    "Who has the old file open goes on reading the old model; a second name for the file shows it."
    old, second_name = (saved / name).read_bytes(), tmp_path_factory.mktemp("second") / name
    second_name.hardlink_to(saved / name)
    other, *_ = parts()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_pipeline(saved, other, SETTINGS, ["other", *NAMES[1:]], levels=17)
    assert (saved / name).read_bytes() != old == second_name.read_bytes()


def flip_a_bit(path: Path, byte: int = -4) -> None:
    "As a tired disk does."
    whole = bytearray(path.read_bytes())
    whole[byte] ^= 1
    path.write_bytes(whole)


def without_sums(folder: Path) -> Path:
    "The folder as older versions wrote it."
    path = folder / "config.json"
    about = json.loads(path.read_text())
    del about["sha256"]
    path.write_text(json.dumps(about))
    return folder


def test_a_flipped_bit_is_refused_wherever_weights_are_read(saved):
    flip_a_bit(saved / "model.safetensors")
    refused(saved, "model.safetensors is not the file that was saved: its SHA-256 is not the one that was noted")
    with pytest.raises(UserError, match="is not the file that was saved"):
        load_initial_weights(parts()[0], saved)


def test_a_folder_without_a_sum_loads_and_a_sum_of_another_kind_does_not(saved):
    about = json.loads((without_sums(saved) / "config.json").read_text())
    flip_a_bit(saved / "model.safetensors")
    load_pipeline(saved)
    for odd in ("", 7, [], {"model.safetensors": ["x"]}):
        (saved / "config.json").write_text(json.dumps({**about, "sha256": odd}))
        refused(saved, "is not the file that was saved")


def test_weights_that_cannot_be_written_leave_the_old_model_whole(saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(TypeError):
        save_pipeline(saved, parts()[0], {"model": {"dim": {1, 2}}}, NAMES, levels=17)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def untrained(settings=SETTINGS):
    "A model whose weights are all 0."
    model = parts(settings)[0]
    with torch.no_grad():
        for weight in model.parameters(): weight.zero_()
    return model


def test_a_model_goes_on_from_the_weights_of_another(saved):
    trained, model = load_pipeline(saved).model, untrained()
    load_initial_weights(model, saved)
    assert all(torch.equal(weight, trained.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_part_that_is_fresh_keeps_its_own_weights(saved):
    trained, model = load_pipeline(saved).model, untrained()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_initial_weights(model, saved, ["core.stages"])
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, (before if name.startswith("core.stages.") else trained.state_dict())[name])


def test_a_model_with_other_parts_cannot_go_on(saved):
    smaller = copy.deepcopy(SETTINGS)
    smaller["model"]["core"]["num_latents"] = 3
    model = untrained(smaller)
    with pytest.raises(UserError, match=r"where core.latents is \[\d+, \d+\] and here \[3, \d+\], .*fresh=\[core\]"):
        load_initial_weights(model, saved)
    with pytest.raises(UserError, match=r"fresh=\[cor\] .*parts of the model, such as .*core"):
        load_initial_weights(model, saved, ["cor"])
    with pytest.raises(UserError, match="There is no model at"):
        load_initial_weights(model, saved / "elsewhere")


def test_nobody_goes_on_from_weights_that_are_no_numbers(saved):
    weights = load_file(saved / "model.safetensors")
    weights["core.latents"][0] = float("nan")
    save_file(weights, saved / "model.safetensors")
    model = untrained()
    with pytest.raises(UserError, match="where core.latents has NaN or infinite values"):
        load_initial_weights(model, saved)
    assert all((weight == 0).all() for weight in model.parameters()), "and no weight was changed"


def edit(folder, where, value):
    "Change a setting in config.json: `where` is a dotted path."
    about = json.loads((folder / "config.json").read_text())
    node, *keys = about, *where.split(".")
    for key in keys[:-1]:
        node = node[int(key) if key.isdigit() else key]
    node[int(keys[-1]) if keys[-1].isdigit() else keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(about))


def test_missing_files(saved, tmp_path):
    refused(tmp_path / "nowhere", "config.json is missing")
    (saved / "model.safetensors").unlink()
    refused(saved, "model.safetensors is missing")


@pytest.mark.parametrize("text, said", [
    ("", "cannot be read as JSON"), ('{"format": "perceiver_moe', "cannot be read as JSON"),
    ("\x00\xff", "cannot be read as JSON"), ("[" * 100_000, "cannot be read as JSON"),
    ('{"format": NaN}', "cannot be read as JSON"), ('["perceiver_moe_diffusion"]', "not a model of this package"),
    ('{"model_type": "bert", "hidden_size": 768}', "not a model of this package"),
    ('{"format": "perceiver_moe_diffusion", "version": 3}', "Install the version that wrote it"),
    ('{"format": "perceiver_moe_diffusion", "version": 1}', "does not describe a model")])
def test_a_config_that_is_not_one(saved, text, said):
    (saved / "config.json").write_text(text, encoding="utf-8")
    refused(saved, said)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(saved, "cannot be read as safetensors")


@pytest.mark.parametrize("damage, said", [
    (lambda w: w.pop("core.latents"), "missing: ['core.latents']"),
    (lambda w: w.update(stowaway=torch.zeros(3)), "surplus: ['stowaway']"),
    (lambda w: w.update({"core.latents": torch.zeros(5, 32)}), "core.latents of shape (5, 32)"),
    (lambda w: w.update({"core.latents": w["core.latents"].double()}), "torch.float64"),
    (lambda w: w["core.latents"][0].fill_(float("nan")), "core.latents with NaN"),
    (lambda w: w["core.latents"][0].fill_(float("inf")), "core.latents with NaN or infinite")])
def test_weights_that_do_not_fit(saved, damage, said):
    weights = load_file(saved / "model.safetensors")
    damage(weights)
    save_file(weights, saved / "model.safetensors")
    refused(saved, said)


class Bomb:
    "A pickle that creates a file when it is opened."
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save])
def test_a_pickle_is_never_opened(saved, write):
    crater = saved / "crater"
    write(Bomb(crater), saved / "model.safetensors")
    refused(saved, "cannot be read as safetensors")
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))
    assert crater.exists(), "the bomb works; it was not set off"


NODES = ["model", "model.adapter", "model.query", "model.core", "model.core.feed_forward",
         "model.core.feed_forward.router", "model.core.feed_forward.experts.0", "diffusion", "diffusion.schedule",
         "sampler", "class_names", "model.input_shape"]
STRANGERS = ["os.system", "pathlib.Path.unlink", "antigravity.webbrowser.open", "builtins.eval", "torch.load",
             "Path.unlink", "eval"]


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("key, partial_", [("_target_", False), ("class", False), ("class", True)])
def test_nothing_outside_the_list_is_called_or_imported(saved, node, key, partial_):
    victim = saved / "victim"
    victim.touch()
    more = {"partial": partial_, "self": str(victim), "command": f"rm {victim}", "source": "1/0"}
    for name in STRANGERS:
        edit(saved, node, {key: name, **more})
        with pytest.raises(UserError) as error:
            load_pipeline(saved)
        assert "\n" not in str(error.value)
    assert victim.exists() and "antigravity" not in sys.modules


@pytest.mark.parametrize("tree", [
    {"_target_": "os.system"}, {"class": "TopKRouter", "_target_": "os.system", "dim": 4, "num_experts": 2},
    [{"deeper": {"_target_": "os.system"}}], {"_partial_": True}])
def test_a_path_to_import_is_refused_as_such(tree):
    with pytest.raises(UserError, match="names nothing to import"):
        from_plain(tree, LOADABLE)


def test_a_table_too_large_to_compute_is_refused_while_it_is_a_sketch(saved):
    edit(saved, "model.adapter.stem_patch", 1)           # as it was made for small images
    edit(saved, "model.input_shape", [1, 10**6, 10**6])  # no weight depends on the size of the image, the positions do
    refused(saved, "a table adapter.positions")


@pytest.mark.parametrize("where, value", [
    ("model.core.num_latents", 10**9), ("model.core.num_latents", 1_000_000), ("model.core.num_latents", -1),
    ("model.core.depth", 1_000_000), ("model.core.num_heads", 0), ("model.core.num_heads", 3),
    ("model.core.dim", "wide"), ("model.core.dim", None),
    ("model.core.feed_forward.num_experts", 1_000_000), ("model.core.feed_forward.top_k", 5),
    ("model.core.feed_forward.experts", []), ("model.core.feed_forward.experts.0.mult", 1e300),
    ("model.core.feed_forward.router", {}), ("model.core.feed_forward", {"class": "PerceiverDenoiser"}),
    ("model.num_classes", 1_000_000), ("model.input_shape", [1]), ("model.adapter.num_bands", 10**6),
    ("model.adapter.no_such_setting", 1), ("model", {"class": "DDIM"}), ("model", 3), ("model.partial", True),
    ("model.class", ["PerceiverDenoiser"]), ("model.class", {"class": "Dense", "dim": 4}),
    ("diffusion.timesteps", 1), ("diffusion.timesteps", 10**6 + 1), ("diffusion.prediction_type", "x1"),
    ("diffusion", {"class": "Dense", "dim": 4}),
    ("sampler.steps", 0), ("sampler.steps", 101), ("sampler.steps", "12"), ("sampler.guidance_scale", -3),
    ("sampler.guidance_scale", "big"), ("sampler.guidance_interval", ["a", "b"]),
    ("sampler", {"class": "TopKRouter", "dim": 4, "num_experts": 2}),
    ("class_names", []), ("class_names", "0123456789ABC"), ("class_names", None)])
def test_settings_that_make_no_model(saved, where, value):
    edit(saved, where, value)
    refused(saved, "")


@pytest.mark.parametrize("depth", [50, 900, 100_000])
def test_settings_nested_too_deep(saved, depth):
    edit(saved, "model.input_shape", "HERE")
    path = saved / "config.json"
    path.write_text(path.read_text().replace('"HERE"', "[" * depth + "8" + "]" * depth))
    refused(saved, "config.json")


class LastExpertsRouter(TopKRouter):
    "A router of one's own: prefers the experts with the highest numbers."

    def scores(self, rows, logits):
        return logits + 10 * torch.arange(logits.shape[-1])


def save_own(folder):
    "A model with a router that this package has never heard of."
    settings = copy.deepcopy(SETTINGS)
    settings["model"]["core"]["feed_forward"]["router"]["_target_"] = "my_project.routers.LastExpertsRouter"
    model, diffusion, sampler = parts(settings, extra=[LastExpertsRouter])
    save_pipeline(folder, model, settings, NAMES, levels=17)
    return GeneratorPipeline(model, diffusion, sampler, NAMES)


def test_a_class_of_ones_own_must_be_brought_along(tmp_path, drawing):
    own = save_own(tmp_path)
    refused(tmp_path, "extra=[YourClass]")
    again = load_pipeline(tmp_path, extra=[LastExpertsRouter])
    assert torch.equal(again.sample([1, 2]), own.sample([1, 2]))
    assert not torch.equal(again.sample([1, 2]), drawing.sample([1, 2])), "the router makes a difference"


@pytest.mark.parametrize("name", sorted(pretrained_folders()))
def test_a_pretrained_model_draws_images_of_its_classes(name):
    pipeline = from_pretrained(name)
    images = pipeline.sample([3, 7], guidance_scale=2.0, steps=4, seed=0)
    assert images.shape == (2, *pipeline.model.input_shape) and bool((images.abs() <= 1).all())


def test_the_box_holds_digits_and_mnist_in_at_most_10_megabytes():
    assert set(pretrained_folders()) == {"digits", "mnist"}
    files_there = [file for folder in pretrained_folders().values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files_there) <= 10_000_000
    assert {file.suffix for file in files_there} <= {".json", ".safetensors", ".yaml"}, "nothing that could run"


@pytest.mark.parametrize("name", ["cats", "", "../pretrained/digits", "digits/"])
def test_a_model_that_is_not_in_the_box_is_refused(name):
    with pytest.raises(UserError, match="allowed: digits, mnist"):
        from_pretrained(name)


def test_weights_stored_at_half_precision_are_read_into_a_full_model(drawing, tmp_path):
    save_pipeline(tmp_path, drawing.model, SETTINGS, NAMES, levels=17)
    full = load_pipeline(tmp_path).sample([1, 2], seed=0)
    halved = {name: tensor.half() for name, tensor in drawing.model.state_dict().items()}
    save_file(halved, tmp_path / "model.safetensors")
    again = load_pipeline(without_sums(tmp_path))
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert_close(again.sample([1, 2], seed=0), full, atol=0.05, rtol=0)
