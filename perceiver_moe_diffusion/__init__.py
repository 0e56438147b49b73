"A Perceiver IO with a mixture of experts as a guided diffusion model: notebooks to read, a package to use."
from pathlib import Path

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


def _jupyter_server_extension_points():
    "What etc/jupyter/jupyter_server_config.d of this repository switches on, in the environment it is installed into."
    return [{"module": __name__}]


def _load_jupyter_server_extension(server):
    "`jupyter lab nbs` opens on the index. A server of another folder, or asked for another page, is left alone."
    folder = Path(server.root_dir)
    settings = folder.parent / "settings.ini"
    told = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    ours = f"lib_name = {__name__}\n" in told and (folder / "index.ipynb").is_file()
    if ours and server.default_url == f"{server.base_url}lab":
        server.default_url += "/tree/index.ipynb"
