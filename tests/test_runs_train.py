# Made from nbs/86_train.ipynb by `pmd-dev tests`. Edit the notebook.
import copy
import functools
from omegaconf import OmegaConf
from perceiver_moe_diffusion.runs.overrides import load_config


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
