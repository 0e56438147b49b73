"Five systems on one core, each measured."
# Made from the modules' public names by `pmd-dev faces`.
from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(__name__, submod_attrs={
    "ablation": ["main_effects", "matched_costs", "show_effects"],
    "dmmoe": ["classify_experts", "expert_kinds", "routing_map", "show_routing"],
    "dmmoe_text": ["judge_questions", "tokens_by_expert"],
    "meme": ["by_noise", "denoiser_costs", "removed_spectrum"],
    "mixture_of_diffusion_experts": ["JudgeGrowth", "grow", "save_grown"],
    "perceiver_study": ["classifier_costs"],
})
