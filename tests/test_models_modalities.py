# Made from nbs/24_modalities.ipynb by `pmd-dev tests`. Edit the notebook.
from functools import partial

import pytest
import torch

from perceiver_moe_diffusion.core import UserError
from perceiver_moe_diffusion.models.adapters import ImagePreprocessor, LearnedQuery
from perceiver_moe_diffusion.models.modalities import (
    ImageAndText,
    MultiModalPreprocessor,
    TextPreprocessor,
    text_preprocessor,
)
from perceiver_moe_diffusion.models.perceiver import PerceiverIO


def decode(ids):
    return [bytes(byte for byte in row if byte != TextPreprocessor.PAD).decode() for row in ids.tolist()]


@pytest.mark.parametrize("text", ["three", "", "naïve café", "日本語", "🙂🙃", "a\nb\t\0"])
def test_text_comes_back_from_its_bytes(text):
    preprocess = TextPreprocessor(max_length=16, dim=8)
    ids = preprocess.encode([text])
    tokens, mask = preprocess(ids)
    assert ids.shape == (1, 16) and ids.dtype == torch.long and tokens.shape == (1, 16, 8)
    assert decode(ids) == [text] and int(mask.sum()) == len(text.encode())


def test_a_long_text_is_cut_after_a_whole_character():
    texts = ["abcdefgh", "日本語", "ab🙂", "é" * 9]
    assert decode(TextPreprocessor(5).encode(texts)) == ["abcde", "日", "ab", "éé"]
    assert decode(TextPreprocessor(2).encode(["日"])) == [""], "no character fits"


def test_an_empty_batch_of_texts_has_the_shape_of_a_batch():
    ids = TextPreprocessor(5).encode([])
    assert ids.shape == (0, 5) and ids.dtype == torch.long


def test_mistakes_with_texts_are_named():
    with pytest.raises(UserError, match="a list of texts"):
        TextPreprocessor(5).encode("three")
    with pytest.raises(UserError, match="texts of 6 bytes.*max_length=5"):
        TextPreprocessor(5)(torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(UserError, match="max_length=0"):
        TextPreprocessor(0)


def test_a_token_is_the_embedding_of_its_byte_and_of_its_place():
    text = TextPreprocessor(4, dim=8)
    tokens, _ = text(torch.tensor([[97, 98, 97]]))
    torch.testing.assert_close(tokens[0, 2], text.byte.weight[97] + text.position[2])
    torch.testing.assert_close(tokens[0, 2] - tokens[0, 0], text.position[2] - text.position[0])


def random_image(shape, batch=2, seed=0):
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def mixed_model(seed=0):
    "A multi-modal preprocessor and a function from its inputs to the outputs of one core."
    torch.manual_seed(seed)
    image, text = ImagePreprocessor((1, 4, 6), patch_size=2), TextPreprocessor(6, dim=16)
    both = MultiModalPreprocessor({"image": image, "text": text})
    core, query = PerceiverIO(both.token_dim, 8, dim=16, num_latents=3, depth=1, num_heads=2), LearnedQuery(8, 2)

    def answer(inputs, present=None):
        tokens, mask = both(inputs, present)
        return core(tokens, query(tokens), mask).output

    return both, answer


def mixed_inputs(both, texts=("abc", "", "a longer text")):
    return {"image": random_image((1, 4, 6), batch=3), "text": both.preprocessors["text"].encode(list(texts))}


def test_a_mixed_batch_goes_through_one_core():
    both, answer = mixed_model()
    inputs = mixed_inputs(both)
    tokens, mask = both(inputs)
    assert tokens.shape == (3, 6 + 6, both.token_dim) and mask.sum(dim=1).tolist() == [6 + 3, 6, 6 + 6]
    output = answer(inputs)
    assert output.shape == (3, 2, 8) and output.isfinite().all()
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in both.parameters())


def test_what_is_absent_or_padding_has_no_influence():
    both, answer = mixed_model()
    inputs, present = mixed_inputs(both), {"text": torch.tensor([True, True, False])}
    output = answer(inputs, present)
    image_only = answer({"image": inputs["image"]})
    torch.testing.assert_close(output[1], image_only[1])  # an empty text: padding alone
    torch.testing.assert_close(output[2], image_only[2])  # a text that is not present
    assert (output[0] - image_only[0]).abs().max() > 1e-4, "a text that is there is read"
    other = answer({**inputs, "text": both.preprocessors["text"].encode(["abc", "", "unlike"])}, present)
    torch.testing.assert_close(other, output)
    with torch.no_grad():
        both.preprocessors["text"].byte.weight[TextPreprocessor.PAD] += 100
    torch.testing.assert_close(answer(inputs, present), output)


def test_a_text_alone_is_the_same_as_with_an_absent_image():
    both, answer = mixed_model()
    inputs = mixed_inputs(both, ["abc", "d", "e"])
    absent = answer(inputs, {"image": torch.zeros(3, dtype=torch.bool)})
    torch.testing.assert_close(absent, answer({"text": inputs["text"]}))


def test_a_sample_with_nothing_at_all_is_answered_without_nan():
    both, answer = mixed_model()
    output = answer({"text": both.preprocessors["text"].encode(["", "abc"])})
    assert output.isfinite().all()
    torch.testing.assert_close(output[1:], answer({"text": both.preprocessors["text"].encode(["abc"])}))


def test_the_order_of_the_modalities_does_not_matter():
    both, answer = mixed_model()
    inputs = mixed_inputs(both)
    torch.testing.assert_close(answer(dict(reversed(inputs.items()))), answer(inputs))


def test_the_type_vector_tells_equal_tokens_apart():
    torch.manual_seed(0)
    twins = MultiModalPreprocessor({name: ImagePreprocessor((1, 4, 4)) for name in ("left", "right")})
    image = random_image((1, 4, 4))
    left, right = (twins({name: image})[0] for name in ("left", "right"))
    width = twins.preprocessors["left"].token_dim
    torch.testing.assert_close(left[..., :width], right[..., :width])
    assert twins.token_dim == width + 4 and (left[..., width:] != right[..., width:]).all()


@pytest.mark.parametrize(
    "inputs,present", [({"audio": 0}, None), ({}, None), ({"image": 0}, {"txt": 0}), ({"image": 0, "sound": 0}, None)]
)
def test_an_unknown_modality_is_refused_with_the_known_ones(inputs, present):
    both, _ = mixed_model()
    with pytest.raises(UserError, match=r"\['image', 'text'\]"):
        both(inputs, present)


def test_types_need_a_channel():
    with pytest.raises(UserError, match="min_type_dim=0"):
        MultiModalPreprocessor({"image": ImagePreprocessor((1, 4, 4))}, min_type_dim=0)


@pytest.mark.parametrize("ids, said", [
    (["abc"], "texts as list"), ("abc", "texts as str"), (torch.zeros(3).long(), "texts of shape (3,)"),
    (torch.zeros(2, 3), "texts of shape (2, 3) and torch.float32"), (torch.tensor([[0, 257]]), "bytes from 0 to 257"),
    (torch.tensor([[-1, 3]]), "bytes from -1 to 3")], ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_no_text_is_refused_with_one_sentence(ids, said):
    with pytest.raises(UserError, match="is not possible; allowed: ") as error:
        TextPreprocessor(6, dim=16)(ids)
    assert said in str(error.value)


def test_bytes_may_be_whole_numbers_of_any_width():
    text = TextPreprocessor(6, dim=16)
    ids = torch.tensor([[97, 98, 255]])
    assert torch.equal(text(ids.to(torch.uint8))[0], text(ids)[0]) and torch.equal(text(ids.short())[0], text(ids)[0])


def test_modalities_come_under_their_names():
    shapes = {"image": (1, 4, 6), "text": (6,)}
    for model in (mixed_model()[0], ImageAndText(shapes)):
        with pytest.raises(UserError, match="inputs as Tensor .* a dictionary with a tensor per modality"):
            model(random_image((1, 4, 6)))
        with pytest.raises(UserError, match="images of shape .* and torch.uint8 .* floats"):
            model({"image": torch.zeros(2, 1, 4, 6, dtype=torch.uint8)})


def test_a_text_preprocessor_is_made_for_the_shape_of_its_data():
    text = text_preprocessor((9,), dim=24)
    assert isinstance(text, TextPreprocessor) and text.max_length == 9 and text.token_dim == 24
    with pytest.raises(UserError, match=r"shape image \(1, 4, 6\), text \(6,\) for model/preprocessor=text"):
        text_preprocessor({"image": (1, 4, 6), "text": (6,)})


@pytest.mark.parametrize("shown, hidden", [("image", "text"), ("text", "image")])
def test_what_is_not_shown_is_as_if_it_were_not_there(shown, hidden):
    torch.manual_seed(0)
    shape, patches = {"image": (1, 4, 6), "text": (6,)}, partial(ImagePreprocessor, patch_size=2)
    both = ImageAndText(shape, patches, dim=16, shown=[shown])
    core, query = PerceiverIO(both.token_dim, 8, dim=16, num_latents=3, depth=1, num_heads=2), LearnedQuery(8)
    inputs = mixed_inputs(both)
    tokens, mask = both(inputs)
    alone, mask_alone = both({shown: inputs[shown]})
    expected = core(alone, query(alone), mask_alone).output
    torch.testing.assert_close(core(tokens, query(tokens), mask).output, expected)
    assert mask.shape == (3, 6 + 6) and mask.sum() == mask_alone.sum() > 0


@pytest.mark.parametrize("shape", [(1, 4, 6), {"image": (1, 4, 6)}, {"text": (6,)},
                                   {"image": (1, 4, 6), "text": (6,), "sound": (9,)}])
def test_image_and_text_need_an_image_and_a_text(shape):
    with pytest.raises(UserError, match=r"image_and_text is not possible; allowed: an image \(C, H, W\) and a text"):
        ImageAndText(shape)


@pytest.mark.parametrize("shown", [[], ["sound"], ["image", "sound"]])
def test_what_is_shown_is_a_modality_that_there_is(shown):
    with pytest.raises(UserError, match=r"shown=\[.*one or more of image, text"):
        ImageAndText({"image": (1, 4, 6), "text": (6,)}, shown=shown)


@pytest.mark.parametrize("shown", [["image"], ["text"], ["image", "text"]])
def test_what_is_shown_is_where_the_inputs_are(shown):
    both = ImageAndText({"image": (1, 4, 6), "text": (6,)}, partial(ImagePreprocessor, patch_size=2), 16, shown)
    both, like = both.to("meta"), {"device": "meta"}
    tokens, mask = both({"image": torch.empty(3, 1, 4, 6, **like), "text": torch.empty(3, 6, dtype=torch.long, **like)})
    assert tokens.is_meta and mask.is_meta and mask.shape == (3, 12)
