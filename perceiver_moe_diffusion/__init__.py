"A Perceiver IO with a mixture of experts as a guided diffusion model: notebooks to read, a package to use."
from lazy_loader import attach

__version__ = "0.4.0"

__getattr__, __dir__, __all__ = attach(
    __name__,
    submodules=["core", "models", "diffusion", "data", "pipelines", "training", "evaluation", "runs", "explore",
                "experiments", "figures", "image_grid", "compat", "tools"],
    submod_attrs={  # what most scripts begin with; each name is loaded when it is asked for
        "pipelines.files": ["from_pretrained", "load_pipeline", "save_pipeline"],
        "models.perceiver": ["PerceiverIO"],
        "models.moe": ["build_moe"],
        "models.denoiser": ["PerceiverDenoiser"],
        "models.classifier": ["Classifier"],
        "diffusion.process": ["Diffusion"],
        "diffusion.sampling": ["DDIM", "DDPM", "DPMSolverPP"],
        "data.images": ["digits"],
        "data.module": ["DataModule"],
        "runs.overrides": ["load_config"],
        "runs.train": ["train"],
        "evaluation.generate": ["evaluate"],
        "explore.guidance_explorer": ["GuidanceExplorer"],
    })
