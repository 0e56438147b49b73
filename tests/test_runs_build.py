# Made from nbs/83_build.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import functools
import pytest
import torch
from omegaconf import OmegaConf
from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.runs.build import build_run
from perceiver_moe_diffusion.runs.build import instantiate_node
from perceiver_moe_diffusion.runs.overrides import load_config
from perceiver_moe_diffusion.runs.train import save_model


QUICK = ["model.dim=32", "model.num_latents=4", "model.depth=1", "sampler.steps=3",
         "evaluation.samples_per_class=4", "evaluation.max_fd_images=40", "evaluation.classifier_steps=20"]
quick_config = functools.cache(
    lambda name="train", *more: load_config([*(QUICK if name == "train" else []), *more], name)
)


def changed(changes, name="train", *more):
    "A copy of the quick configuration with some values set: much faster than composing it again."
    config = copy.deepcopy(quick_config(name, *more))
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


@pytest.mark.parametrize("where, value, said", [
    ("model.net.core.feed_forward.top_k", 9, "top_k=9"), ("model.net.core.num_heads", 5, "num_heads=5"), ("pipeline.sampler.steps", 5000, "1 to 1000"),
    ("model.net.adapter.stem_channels", 12, "stem_channels=12"), ("data.batch_size", 5000, "data.batch_size=5000"), ("data.batch_size", 0, "data.batch_size=0"),
    ("trainer.devices", 3, "data.batch_size=64 on 3 processes"), ("pipeline.sampler.guidance_interval", [2.0, 1.0], "guidance_interval")])
def test_a_mistake_inside_a_part_is_found_and_named(where, value, said):
    with pytest.raises(UserError) as refused:
        build_run(changed({where: value}))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_what_a_library_refuses_becomes_one_line():
    with pytest.raises(UserError) as refused:
        instantiate_node(changed({"trainer.precision": "seven"}).trainer)
    assert (
        "lightning.Trainer" in str(refused.value) and "seven" in str(refused.value) and "\n" not in str(refused.value)
    )


def test_the_seed_decides_the_first_weights():
    weights = lambda seed: build_run(changed({"seed": seed})).module.model.core.latents
    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    first = build_run(changed({"seed": 1}))
    save_model(changed({"seed": 1}), first, tmp_path)
    second = build_run(changed({"seed": 2, "init": str(tmp_path), "fresh": ["core.decoder"]})).module.model
    own = build_run(changed({"seed": 2})).module.model.state_dict()
    for name, weight in second.state_dict().items():
        assert torch.equal(
            weight, own[name] if name.startswith("core.decoder.") else first.module.model.state_dict()[name]
        )
    with pytest.raises(UserError, match="core.latents is .*a run of the same model"):
        build_run(changed({"init": str(tmp_path), "model.net.core.num_latents": 9}))
