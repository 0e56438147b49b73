# Made from nbs/69_model_picture.ipynb by `pmd-dev tests`. Edit the notebook.
import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.explore.model_picture import (
    ARROWS,
    BOXES,
    FORKS,
    HEIGHT,
    KINDS,
    NOTES,
    PIECES,
    THEMES,
    WIDTH,
    Arrow,
    default_denoiser,
    mix,
    model_pictures,
    model_shapes,
    model_svg,
    svg_arrow,
    svg_experts,
    theme_rules,
    words_for,
    written,
)
from perceiver_moe_diffusion.models.adapters import PatchAdapter
from perceiver_moe_diffusion.models.denoiser import PerceiverDenoiser
from perceiver_moe_diffusion.models.moe import BiasBalancedRouter, build_moe
from perceiver_moe_diffusion.models.perceiver import PerceiverIO
from perceiver_moe_diffusion.runs import instantiate_node, load_config


@pytest.mark.parametrize("input_shape, lines", [((1, 8, 8), []), ((1, 28, 28), ["experiment=mnist"])])
def test_the_network_in_the_picture_is_the_one_that_is_trained(input_shape, lines):
    node = load_config(lines).model.net
    trained = instantiate_node(node, input_shape=list(input_shape), num_classes=10)
    drawn = default_denoiser(input_shape)
    shape_by_name = lambda model: {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert shape_by_name(drawn) == shape_by_name(trained)
    assert model_shapes(drawn) == model_shapes(trained)


def test_the_shapes_are_those_of_a_run():
    model, x = default_denoiser(), torch.randn(3, 1, 8, 8)
    t, label = torch.zeros(3, dtype=torch.long), torch.arange(3)
    condition = model.condition(t, label)
    tokens, skip = model.adapter.tokens(x, condition)
    output = model.core(tokens, model.query(tokens), extra_latents=model.to_latent(condition).unsqueeze(1))
    made = {"tokens": tokens, "skip": skip, "condition": condition, "queries": model.query(tokens),
            "processed": output.latents, "decoded": output.output, "v": model(x, t, label)}
    shapes = model_shapes(model)
    assert {name: shapes[name] for name in made} == {name: ("B", *x.shape[1:]) for name, x in made.items()}
    assert shapes["blocks"] == (len(output.routings) - 1,)  # the last one is the decoder's
    routing = output.routings[0]
    for name, x in (("logits", routing.logits), ("expert_ids", routing.expert_ids)):
        assert shapes[name] == ("R", x.shape[1])


@pytest.mark.parametrize("training", [True, False])
def test_looking_at_a_model_does_not_change_it(training):
    experts = partial(build_moe, num_experts=4, top_k=2, router=BiasBalancedRouter)
    model = PerceiverDenoiser((1, 8, 8), 10, core=partial(PerceiverIO, feed_forward=experts)).train(training)
    model.condition.eval()  # a part that somebody keeps frozen
    random, load = torch.get_rng_state(), [m.load for m in model.modules() if isinstance(m, BiasBalancedRouter)]
    model_shapes(model)
    assert model.training is model.core.training is training and not model.condition.training
    assert torch.equal(torch.get_rng_state(), random)
    assert load and all(float(x.sum()) == 0 for x in load)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_run_that_fails_leaves_no_hooks():
    model = default_denoiser()
    model.input_shape = (1, 9, 9)
    with pytest.raises(Exception):  # noqa: B017
        model_shapes(model)
    assert model.training and not any(m._forward_hooks for m in model.modules())


FRAMES = {"network", "process"}
READ = {size: model_shapes(default_denoiser(size)) for size in ((1, 8, 8), (1, 28, 28))}


def corners_of(arrow):
    return [tuple(map(float, corner.split(","))) for corner in arrow.corners.split()]


def on_edge(point, box):
    (x, y), right, low = point, box.x + box.width, box.y + box.height
    return (x in (box.x, right) and box.y <= y <= low) or (y in (box.y, low) and box.x <= x <= right)


def overlap(one, other):  # each (left, top, right, bottom)
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def extent(box):
    return (box.x, box.y, box.x + box.width, box.y + box.height)


def text_width(text, name=False):
    font = FontProperties("DejaVu Sans", weight="bold" if name else "normal", size=13 if name else 11.5)
    return TextPath((0, 0), re.sub(r"[_^]", "", text), prop=font).get_extents().width


def labels(shapes):
    for _, x, y, text, look in [*(("", *a.at, a.label, "") for a in ARROWS if a.label), *NOTES]:
        words = text.format(**words_for(shapes))
        half = text_width(words, "name" in look) / 2
        yield words, (x - half, y - 9, x + half, y + 2)


def test_no_box_lies_on_another():
    for name, box in BOXES.items():
        assert min(box.x, box.y) > 0 and box.x + box.width < WIDTH and box.y + box.height < HEIGHT
        for other, beside in BOXES.items():
            inside = name in FRAMES or other in FRAMES
            assert name == other or inside or not overlap(extent(box), extent(beside)), (name, other)


def test_each_arrow_leads_from_its_box_to_its_box_in_level_and_upright_lines():
    for arrow in ARROWS:
        points = corners_of(arrow)
        fork = any(name == arrow.start and (x, y) == points[0] for name, x, y in FORKS)
        assert fork or on_edge(points[0], BOXES[arrow.start]), arrow
        assert on_edge(points[-1], BOXES[arrow.end]), arrow
        assert all((x == to_x) != (y == to_y) for (x, y), (to_x, to_y) in pairwise(points)), arrow


def test_no_arrow_runs_through_a_box_or_a_label():
    written = [place for shapes in READ.values() for _, place in labels(shapes)]
    for arrow in ARROWS:
        boxes = [extent(box) for name, box in BOXES.items() if name not in FRAMES]
        for (x, y), (to_x, to_y) in pairwise(corners_of(arrow)):
            line = (min(x, to_x), min(y, to_y), max(x, to_x) + 1e-3, max(y, to_y) + 1e-3)
            shrunk = (line[0] + 0.5 * (y == to_y), line[1] + 0.5 * (x == to_x), line[2] - 0.5 * (y == to_y),
                      line[3] - 0.5 * (x == to_x))
            assert not [other for other in [*boxes, *written] if overlap(shrunk, other)], arrow


@pytest.mark.parametrize("size", READ, ids=str)
def test_text_fits_into_its_box_and_labels_lie_beside(size):
    words = words_for(READ[size])
    for box in BOXES.values():
        for line in filter(None, box.text.split("|")):
            assert text_width(line.rstrip("*").format(**words), line.endswith("*")) <= box.width - 3, line
    places, boxes = list(labels(READ[size])), [extent(box) for name, box in BOXES.items() if name not in FRAMES]
    for text, place in places:
        assert not [other for other in boxes if overlap(place, other)], text
        assert not [other for other, there in places if other != text and overlap(place, there)], text


def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#123456", "#123456") == 1
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)  # a well-known grey at the limit


@pytest.mark.parametrize("theme", THEMES)
def test_every_text_has_a_contrast_of_at_least_four_and_a_half(theme):
    rules = theme_rules(*THEMES[theme])
    colour = lambda selector: rules[selector][5:12]  # fill:#rrggbb
    ink, quiet = colour("text"), colour("text.shape,text.dim")
    grounds = [selector for selector in rules if selector.startswith(("rect", ".card", ".frame", ".block"))]
    assert len(grounds) == 2 * len(KINDS) + 5
    for selector in grounds:
        if "fill" in rules[selector]:
            assert contrast(ink, colour(selector)) >= 4.5, selector
    for selector in (".card,.spare", ".frame", ".block", "rect.dim"):
        assert contrast(quiet, colour(selector)) >= 4.5, selector


@pytest.mark.parametrize("theme", THEMES)
def test_boxes_and_lines_stand_out_from_the_ground(theme):
    ground, rules = THEMES[theme][0], theme_rules(*THEMES[theme])
    assert all(contrast(rules[f".line.{kind}"][-7:], ground) >= 3 for kind in KINDS), "WCAG 2.2, 1.4.11"


def test_mix_goes_from_one_colour_to_the_other():
    assert mix("#0072b2", "#ffffff", 0) == "#0072b2" and mix("#0072b2", "#ffffff", 1) == "#ffffff"
    assert mix("#000000", "#ff8000", 0.5) == "#804000"


def test_indices_are_set_lower_and_what_follows_comes_back():
    low = '<tspan class="sub" dy="3">t</tspan>'
    assert written("x_t") == f"x{low}" and written("no index") == "no index"
    assert written("x_t a") == f'x{low}<tspan dy="-3"> a</tspan>'
    assert written("a x_0 + t_next").count('dy="3"') == 2 and ">next<" in written("t_next")


def test_a_tip_is_where_the_arrow_ends():
    arrow = Arrow("a", "b", "0,10 0,50 40,50", "{v}", (5, 5))
    line, label = svg_arrow(arrow, "lit", lambda text: text.format(v="[B]"))
    assert 'd="M0 10L0 50L33 50"' in line and 'd="M40 50L' in line and ">[B]<" in label and "lit" in line


@pytest.mark.parametrize("size", READ, ids=str)
def test_the_shapes_in_the_picture_are_those_that_the_hooks_read(size):
    picture = model_svg(READ[size])
    shown = set(re.findall(r"\[[B\d][\d,]*\]", re.sub(r"<desc>.*</desc>", "", picture, flags=re.S)))
    read = {words_for(READ[size])[name] for name in READ[size] if name not in ("blocks", "logits", "expert_ids")}
    assert shown == read
    by_place = {name: arrow.label for arrow in ARROWS for name in READ[size] if f"{{{name}}}" in arrow.label}
    assert set(by_place) == set(READ[size]) - {"latents", "blocks", "logits", "expert_ids"}, "one at each arrow"


def test_a_piece_is_lit_and_all_else_dim():
    picture = model_svg(READ[1, 8, 8], "20_fourier")
    assert len(re.findall(r'<rect[^>]* lit"', picture)) == len(PIECES["20_fourier"]) == 1
    assert len(re.findall(r'<rect[^>]* dim"', picture)) == len(BOXES) - 2 + 4  # no box for the experts, but each
    assert not re.findall(r'(?: lit| dim)"', model_svg(READ[1, 8, 8]))


def test_experts_are_drawn_as_many_as_there_are():
    for count, chosen in ((1, 1), (2, 1), (4, 2), (4, 4), (8, 3), (64, 2)):
        drawn = "".join(svg_experts(BOXES["experts"], count, chosen, ""))
        assert drawn.count("<rect") == min(count, 8) and drawn.count("<path") == drawn.count('"expert "') == chosen


def test_an_adapter_without_a_skip_connection_has_none_in_the_picture():
    experts = partial(build_moe, num_experts=4, top_k=2)
    plain = PerceiverDenoiser((1, 8, 8), 10, PatchAdapter, core=partial(PerceiverIO, feed_forward=experts))
    picture = model_svg(model_shapes(plain))
    assert "skip" not in picture and "conv" not in picture and "skip" in model_svg(READ[1, 8, 8])


def test_what_cannot_be_drawn_is_one_sentence():
    with pytest.raises(UserError, match="a picture with 99_lights lit is not possible; allowed: 10_points, "):
        model_svg(READ[1, 8, 8], "99_lights")
    with pytest.raises(UserError, match="no mixture of experts"):
        model_svg(model_shapes(PerceiverDenoiser((1, 8, 8), 10)))


def test_every_picture_is_small_plain_and_the_same_each_time():
    pictures = model_pictures()
    assert pictures == model_pictures()
    for name, text in pictures.items():
        assert len(text.encode()) <= 15_000, name
        root = ElementTree.fromstring(text)
        tags = [child.tag.partition("}")[2] for child in root.iter()]
        assert tags[:4] == ["svg", "title", "desc", "style"] and root.get("role") == "img"
        assert set(tags[4:]) == {"rect", "text", "tspan", "path", "circle"}, name
        assert all(child.text.strip() for child in root[:2]), name
        assert not re.search(r"href|url\(|@import|https?://(?!www.w3.org/2000/svg)", text), "nothing from elsewhere"


def test_every_notebook_of_parts_one_to_three_has_a_picture_and_its_file_is_there():
    nbs = Path(__file__).parent.parent / "nbs"
    stems = [path.stem for path in nbs.glob("[123]?_*.ipynb")]
    assert len(stems) >= 10 and set(stems) <= set(PIECES)
    for name in model_pictures():
        assert (nbs / "images" / f"{name}.svg").is_file(), "pmd-dev picture"


def test_every_piece_is_a_box_of_the_picture():
    assert all(boxes and set(boxes) <= set(BOXES) for boxes in PIECES.values())
