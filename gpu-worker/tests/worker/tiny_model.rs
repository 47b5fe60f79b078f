//! A random model as a Hugging Face folder: small enough to train in milliseconds, whole enough that nothing in the
//! worker can tell. Its tokenizer has one token per byte, so every string and every UTF-8 character can be cut anywhere.

use serde_json::{Map, Value, json};

pub const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = HIDDEN / HEADS;
pub const VOCAB: usize = 259;
pub const CONTEXT: usize = 192;

const TEMPLATE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                        {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The files of the folder, by name.
pub fn files(seed: u64) -> Vec<(&'static str, Vec<u8>)> {
    files_with_context(seed, CONTEXT)
}

/// As [`files`], for so many tokens.
pub fn files_with_context(seed: u64, context: usize) -> Vec<(&'static str, Vec<u8>)> {
    let any = |weight| weight;
    files_of(seed, context, HEAD_DIM, any)
}

/// As [`files`], with heads as wide as a GPU's kernels know them, and weights that bf16 can hold.
pub fn files_for_gpu(seed: u64) -> Vec<(&'static str, Vec<u8>)> {
    let cut = |weight: f32| f32::from_bits(weight.to_bits() & 0xffff_0000);
    files_of(seed, CONTEXT, 64, cut)
}

/// As [`files`], with a tokenizer that puts `<|im_start|>` before any text.
pub fn files_with_beginning(seed: u64) -> Vec<(&'static str, Vec<u8>)> {
    let begins = json!({"SpecialToken": {"id": "<|im_start|>", "type_id": 0}});
    let mut tokenizer = tokenizer();
    tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [begins, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [256], "tokens": ["<|im_start|>"]}}
    });
    let mut files = files(seed);
    files[1] = ("tokenizer.json", tokenizer.to_string().into_bytes());
    files
}

fn files_of(
    seed: u64,
    context: usize,
    head_dim: usize,
    cut: fn(f32) -> f32,
) -> Vec<(&'static str, Vec<u8>)> {
    let config = config(context, head_dim).to_string();
    vec![
        ("config.json", config.into_bytes()),
        ("tokenizer.json", tokenizer().to_string().into_bytes()),
        (
            "tokenizer_config.json",
            tokenizer_config().to_string().into_bytes(),
        ),
        ("model.safetensors", weights(seed, head_dim, cut)),
    ]
}

fn config(context: usize, head_dim: usize) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": head_dim, "vocab_size": VOCAB,
        "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": true, "torch_dtype": "float32", "bos_token_id": 256, "eos_token_id": 257
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "chat_template": TEMPLATE
    })
}

fn tokenizer() -> Value {
    let vocab: Map<String, Value> = (0..=255_u8)
        .map(|byte| (spelling(byte).to_string(), json!(byte)))
        .collect();
    let special = |(id, content): (usize, &str)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added: Vec<Value> = [
        (256, "<|im_start|>"),
        (257, "<|im_end|>"),
        (258, "<|endoftext|>"),
    ]
    .into_iter()
    .map(special)
    .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []}
    })
}

/// How byte-level tokenizers spell a byte: printable ones as themselves, the others from U+0100 on.
fn spelling(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let place = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + place).unwrap()
}

/// One safetensors file: eight bytes of header length, the header, the numbers.
fn weights(seed: u64, head_dim: usize, cut: fn(f32) -> f32) -> Vec<u8> {
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: [usize; 2]| {
            let shape = shape.into_iter().filter(|n| *n > 0).collect();
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        };
        add("self_attn.q_proj", [HEADS * head_dim, HIDDEN]);
        add("self_attn.k_proj", [KV_HEADS * head_dim, HIDDEN]);
        add("self_attn.v_proj", [KV_HEADS * head_dim, HIDDEN]);
        add("self_attn.o_proj", [HIDDEN, HEADS * head_dim]);
        add("mlp.gate_proj", [INTERMEDIATE, HIDDEN]);
        add("mlp.up_proj", [INTERMEDIATE, HIDDEN]);
        add("mlp.down_proj", [HIDDEN, INTERMEDIATE]);
        add("input_layernorm", [HIDDEN, 0]);
        add("post_attention_layernorm", [HIDDEN, 0]);
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));

    let (mut header, mut data) = (Map::new(), Vec::new());
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for (name, shape) in tensors {
        let start = data.len();
        let is_norm = shape.len() == 1;
        for _ in 0..shape.iter().product::<usize>() {
            // xorshift64*: any spread of weights will do, as long as a seed always gives the same.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let uniform = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32
                / (1_u32 << 24) as f32
                - 0.5;
            let weight = if is_norm { 1.0 } else { uniform * 0.3 };
            data.extend_from_slice(&cut(weight).to_le_bytes());
        }
        header.insert(
            name,
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}
