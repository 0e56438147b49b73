"Networks: Fourier positions, attention, mixture of experts, Perceiver IO, adapters, denoiser, classifier, upscaler."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "adapters": ["ConvAdapter", "ConvPreprocessor", "FiLM", "ImageAdapter", "ImagePreprocessor", "InputQuery",
        "LearnedQuery", "PatchAdapter", "PositionQuery", "Projected", "QueryProvider"],
    "attention": ["Attention", "Block", "Dense", "MLP", "naive_attention"],
    "classifier": ["Classifier"],
    "denoiser": ["PerceiverDenoiser", "timestep_embedding"],
    "experts": ["AttentionExpert", "ConvExpert", "RecurrentExpert"],
    "flops": ["count_flops"],
    "fourier": ["fourier_encode", "grid_positions"],
    "mixture_of_denoisers": ["ForClasses", "IntervalRouter", "LabelRouter", "MixtureOfDenoisers", "NoiseRouter",
        "add_expert", "remove_expert"],
    "modalities": ["ImageAndText", "MultiModalPreprocessor", "TextPreprocessor", "text_preprocessor"],
    "moe": ["BiasBalancedRouter", "Expert", "MLPExpert", "MoE", "NoisyTopKRouter", "Router", "Routing", "TopKRouter",
        "balance_loss", "build_moe", "dispatch", "expert_load", "router_z_loss"],
    "perceiver": ["PerceiverIO", "PerceiverOutput"],
    "upscaler": ["ConditionedUpscaler", "Upscaler"],
})
