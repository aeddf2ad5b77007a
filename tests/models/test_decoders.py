"""What keeps a model from being observed is said by its cause, when it is wrapped."""

import copy

import accelerate
import pytest
import tiny
import torch
import transformers

from posprobe.errors import ModelError
from posprobe.models import ObservableModel, Observation, Observer

VISION = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, image_size=8)
STREAMS = dict(
    vocab_size_per_layer_input=97,
    hidden_size_per_layer_input=8,
    laurel_rank=4,
    num_kv_shared_layers=0,
    layer_types=["full_attention"] * 3,
    activation_sparsity_pattern=[0.0] * 3,
)


def streams(model):
    """Shape of the residual stream at each block, by layer."""
    seen = {}

    def emit(name, layer, tensor):
        if name == "residual":
            seen[layer] = tuple(tensor.shape)

    model.run(tiny.tokens(), Observer(emit, Observation(n_queries=24)))
    return seen


def llava(depth):
    vision = transformers.CLIPVisionConfig(num_hidden_layers=depth, patch_size=4, **VISION)
    text = tiny.tiny_config("llama")
    config = transformers.LlavaConfig(text_config=text, vision_config=vision)
    return tiny.scramble(transformers.LlavaForConditionalGeneration(config).double())


# --- blocks ---


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_text_blocks_are_found_however_deep_the_vision_tower_is(depth):
    model = ObservableModel(llava(depth))
    assert {type(block).__name__ for block in model.blocks} == {"LlamaDecoderLayer"}
    assert streams(model) == dict.fromkeys(range(4), (2, 24, 32))


def test_list_as_long_as_the_blocks_is_not_taken_for_them():
    model = tiny.tiny_model("llama")
    decoder = torch.nn.Module()
    decoder.adapters = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    decoder.stack = model.model.layers
    model.get_decoder = lambda: decoder
    assert list(ObservableModel(model).blocks) == list(model.model.layers)


def test_blocks_whose_attention_has_no_number_are_not_found():
    model = tiny.tiny_model("llama")
    del model.model.layers[1].self_attn.layer_idx
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 3 blocks with attention"):
        ObservableModel(model)


def test_blocks_that_the_forward_pass_does_not_go_through_are_refused():
    model = tiny.tiny_model("llama")
    decoder = torch.nn.Module()
    decoder.layers = copy.deepcopy(model.model.layers)
    model.get_decoder = lambda: decoder
    with pytest.raises(ModelError, match=r"stream at block 0 is never seen, not \(1, 4, 32\)"):
        ObservableModel(model)


@pytest.mark.filterwarnings("ignore")
def test_model_of_several_streams_is_refused():
    config = transformers.Gemma3nTextConfig(**tiny.GROUPED | STREAMS | dict(intermediate_size=48))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"Gemma3nForC\w+ pass on .*\(4, 1, 4, 32\), not one res"):
        ObservableModel(model)


def test_heads_that_the_configuration_does_not_have_are_refused():
    model = tiny.tiny_model("llama")
    model.config.num_attention_heads = 2
    with pytest.raises(ModelError, match="layer 0 has 4 heads where the configuration says 2"):
        ObservableModel(model)


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "hidden_size"])
def test_configuration_without_a_size_is_refused(name):
    model = tiny.tiny_model("llama")
    vars(model.config)[name] = None
    with pytest.raises(ModelError, match=rf"how large the decoder is \({name} is None\), so"):
        ObservableModel(model)


def test_layers_that_work_on_the_mask_themselves_are_refused():
    model = tiny.tiny_model("llama", attention="eager")

    def first_key(module, args, keywords):
        keywords["attention_mask"][..., :1]

    model.model.layers[1].register_forward_pre_hook(first_key, with_kwargs=True)
    with pytest.raises(ModelError, match=r"posprobe's attention \(TypeError: .*work on the mask"):
        ObservableModel(model)


# --- weights ---


@pytest.mark.parametrize(
    ("weight", "value", "reason"),
    [
        ("model.layers.1.mlp.up_proj", torch.nan, r"layer 1 hold NaN \(mlp\.up_proj, 1 value\)"),
        ("model.layers.2.input_layernorm", torch.inf, r"layer 2 hold infinities \(input_layer"),
        ("model.embed_tokens", -torch.inf, r"the model hold infinities \(model\.embed_tokens, 1"),
        ("lm_head", torch.nan, r"the model hold NaN \(lm_head, 1 value\)"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_that_are_not_numbers_are_named(weight, value, reason, dtype):
    model = tiny.tiny_model("llama", dtype=dtype)
    model.get_submodule(weight).weight.data.view(-1)[-1] = value
    with pytest.raises(ModelError, match=f"'tiny': weights of {reason}"):
        ObservableModel(model, name="tiny")


def test_bias_and_number_of_values_are_named():
    model = tiny.tiny_model("gpt2")
    model.transformer.h[0].attn.c_attn.bias.data[:7] = torch.nan
    with pytest.raises(ModelError, match=r"layer 0 hold NaN \(attn\.c_attn\.bias, 7 values\)"):
        ObservableModel(model)


def test_weights_whose_sum_overflows_are_numbers():
    model = tiny.tiny_model("llama", dtype=torch.float32)
    unused = torch.full((2, 2), 3e38)
    model.model.register_parameter("unused", torch.nn.Parameter(unused))
    assert ObservableModel(model).n_layers == 3


# --- states ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own modules
def test_compiled_model_is_refused():
    with pytest.raises(ModelError, match=r"is compiled, .* as it was before torch\.compile"):
        ObservableModel(torch.compile(tiny.tiny_model("llama")))
    model = tiny.tiny_model("llama")
    model.compile()
    with pytest.raises(ModelError, match="is compiled"):
        ObservableModel(model)


def test_weights_that_are_nowhere_are_named():
    model = tiny.tiny_model("llama")
    model.model.layers[1].mlp.to("meta")
    words = r"3 of the model's weights and buffers are on the meta device \(model\.layers\.1\.mlp"
    with pytest.raises(ModelError, match=words):
        ObservableModel(model)
    model = tiny.tiny_model("llama")
    model.model.rotary_emb.to("meta")
    with pytest.raises(ModelError, match=r"meta device \(model\.rotary_emb\.inv_freq\)"):
        ObservableModel(model)


def test_offloaded_weights_that_are_not_numbers_are_named():
    model = tiny.tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"weights of layer 1 hold NaN \(mlp.up_proj, 1 value"):
        ObservableModel(accelerate.cpu_offload(model))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_model_that_is_compiled_or_emptied_after_it_was_wrapped_is_refused():
    model = ObservableModel(tiny.tiny_model("llama"))
    model.model.model.layers[1].compile()
    with pytest.raises(ModelError, match="is compiled"):
        streams(model)
    model = ObservableModel(tiny.tiny_model("llama"))
    model.model.model.layers[1].to("meta")
    with pytest.raises(ModelError, match="are on the meta device"):
        streams(model)


def test_model_that_was_cast_in_part_is_refused_by_its_types():
    model = tiny.tiny_model("llama", dtype=torch.float32)
    model.model.layers[1].half()
    with pytest.raises(
        ModelError, match=r"does not run .*; its weights are of 2 types \(float16, float32\)"
    ) as error:
        ObservableModel(model)
    assert "\n" not in str(error.value)


def test_model_that_fails_by_itself_is_refused_with_its_reason():
    model = tiny.tiny_model("llama")
    model.model.norm.forward = None
    with pytest.raises(ModelError, match=r"does not run on 24 random tokens \(TypeError: .*\)$"):
        ObservableModel(model)


def test_model_that_gives_tuples_by_its_configuration_is_observed():
    model = tiny.tiny_model("llama")
    model.config.return_dict = False
    assert streams(ObservableModel(model)) == dict.fromkeys(range(4), (2, 24, 32))
