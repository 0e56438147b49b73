"The forward process and its loss; samplers and guidance."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "process": ["Diffusion", "Loss", "LossNoise", "PredictionType", "bits_per_dim", "cosine", "linear", "posterior",
        "sigmoid", "zero_terminal_snr"],
    "sampling": ["DDIM", "DDPM", "DPMSolverPP", "NoiseStream", "Sampler", "SamplerStep", "classifier_free_guidance",
        "inpaint", "sdedit_start", "trailing_step_pairs"],
})
