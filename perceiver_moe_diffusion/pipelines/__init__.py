"Trained models in use: draw, classify, enlarge; save and load."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "base": ["Pipeline", "SamplingPipeline"],
    "classify": ["ClassifierPipeline"],
    "files": ["from_pretrained", "load_initial_weights", "load_pipeline", "pretrained_folders", "save_pipeline"],
    "generate": ["GeneratorPipeline"],
    "upscale": ["UpscalerPipeline"],
})
