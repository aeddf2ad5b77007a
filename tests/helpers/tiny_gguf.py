"""A tiny Llama as the GGUF file that llama.cpp would make of it."""

import gguf
import tiny
import torch

VOCABULARY = ["a", "b", "ab", *(f"word{n}" for n in range(tiny.COMMON["vocab_size"] - 3))]


def interleave(weight, n_heads):
    """Rows of a query or key projection in the order of llama.cpp: pairs that rotate together."""
    return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def write_gguf(path):
    """Write the file in float32; return the model, whose weights it holds."""
    model = tiny.tiny_model("llama", dtype=torch.float32)
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(VOCABULARY))
    writer.add_token_merges(["a b"])
    for name, weight in model.state_dict().items():
        n_heads = heads.get(name.split(".")[-2])
        weight = interleave(weight, n_heads) if n_heads else weight
        writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
