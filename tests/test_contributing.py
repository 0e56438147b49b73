"The worked examples of CONTRIBUTING.md are files; here they are written, chosen by configuration, built and run."
import re
import sys
from pathlib import Path

import pytest
import torch

from perceiver_moe_diffusion.diffusion import DDIM
from perceiver_moe_diffusion.pipelines import from_pretrained
from perceiver_moe_diffusion.runs import build_run, instantiate_node, load_config

PAGE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+ file=(\S+)\n(.*?)```", PAGE, re.S))
SMALL = ["model.dim=16", "model.num_latents=2", "model.depth=1"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "The folder of a person who has written all the examples down."
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def test_there_are_two_files_for_each_kind():
    assert sum(name.endswith(".py") for name in FILES) == sum(name.endswith(".yaml") for name in FILES) == 5


@pytest.mark.parametrize("choice, kind", [("moe/router=cosine", "CosineRouter"), ("moe=mean", "MeanExpert"),
                                          ("model/adapter=bare", "BareAdapter")])
def test_a_part_of_the_model_is_chosen_and_learns(mine, choice, kind):
    run = build_run(load_config(["hydra.searchpath=[conf]", choice, *SMALL]))
    assert kind in {type(module).__name__ for module in run.module.model.modules()}
    images, labels = run.data.split("val")
    noise = run.module.diffusion.sample_noise(len(images), images.shape[1:], torch.Generator().manual_seed(0))
    loss, _ = run.module.diffusion.loss(run.module.model, images, labels, noise)
    loss.backward()
    assert torch.isfinite(loss)


def test_a_data_set_is_chosen(mine):
    run = build_run(load_config(["hydra.searchpath=[conf]", "data=squares", *SMALL]))
    assert run.data.input_shape == (1, 8, 8) and run.data.examples.class_names == ["small", "large"]


def test_a_sampler_is_chosen_and_draws_what_ddim_draws(mine):
    pipeline = from_pretrained("digits")
    chosen = instantiate_node(load_config(["hydra.searchpath=[conf]", "sampler=euler"], "sample").sampler)
    pipeline.sampler = chosen
    ours = pipeline.sample([3, 7], seed=1)
    pipeline.sampler = DDIM(steps=chosen.steps, guidance_scale=chosen.guidance_scale)
    torch.testing.assert_close(ours, pipeline.sample([3, 7], seed=1), atol=1e-4, rtol=0)
