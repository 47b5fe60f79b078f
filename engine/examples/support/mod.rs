//! What the benchmarks share: shapes, models of random weights, and what the process has used.

use std::error::Error;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use serde_json::json;

/// hidden, layers, heads, key-value heads, feed-forward, vocabulary; the same table stands in bench/peers/shapes.py
pub type Shape = [usize; 6];

const SHAPES: [(&str, Shape); 3] = [
    ("10m", [256, 8, 4, 2, 704, 16_384]),
    ("135m", [576, 30, 9, 3, 1536, 49_152]),
    ("0.5b", [896, 24, 14, 2, 4864, 151_936]),
];

pub fn shape_of(name: &str) -> Result<Shape, Box<dyn Error>> {
    let found = SHAPES.iter().find(|(n, _)| *n == name);
    Ok(found.ok_or(format!("unknown shape {name}"))?.1)
}

/// The value after `--name` on the command line.
pub fn value(name: &str) -> Result<String, Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let at = args.iter().position(|a| a == name);
    let at = at.ok_or(format!("{name} is missing"))?;
    Ok(args
        .get(at + 1)
        .ok_or(format!("{name} has no value"))?
        .clone())
}

/// Writes a Hugging Face folder with random bf16 weights.
pub fn write_model(dir: &Path, shape: Shape) -> Result<(), Box<dyn Error>> {
    let [hidden, layers, heads, kv_heads, feed_forward, vocab] = shape;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": feed_forward,
        "vocab_size": vocab, "tie_word_embeddings": true, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
    });
    fs::write(dir.join("config.json"), config.to_string())?;
    let kv = hidden / heads * kv_heads;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for i in 0..layers {
        let modules = [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![feed_forward, hidden]),
            ("mlp.up_proj", vec![feed_forward, hidden]),
            ("mlp.down_proj", vec![hidden, feed_forward]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ];
        tensors.extend(modules.map(|(m, shape)| (format!("model.layers.{i}.{m}.weight"), shape)));
    }
    write_tensors(&dir.join("model.safetensors"), &tensors)
}

/// Streams the file, so that peak memory is the engine's and not this writer's.
fn write_tensors(path: &PathBuf, tensors: &[(String, Vec<usize>)]) -> Result<(), Box<dyn Error>> {
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + 2 * shape.iter().product::<usize>();
        header.insert(
            name.clone(),
            json!({ "dtype": "BF16", "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(fs::File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (i, (_, shape)) in tensors.iter().enumerate() {
        let is_norm = shape.len() == 1;
        for k in 0..shape.iter().product::<usize>() {
            // Uniform with standard deviation 0.02, as fresh models have it; norms are ones.
            let u = hash((i as u32) << 26 ^ k as u32) as f32 / u32::MAX as f32 - 0.5;
            let value = if is_norm { 1.0 } else { u * 0.07 };
            file.write_all(&bf16::from_f32(value).to_le_bytes())?;
        }
    }
    Ok(file.flush()?)
}

/// The finaliser of murmur3.
pub fn hash(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 13;
    x = x.wrapping_mul(0xC2B2_AE35);
    x ^ (x >> 16)
}

/// User and system time of this process and its threads. Seconds, in hundredths: the kernel's clock ticks on Linux.
pub fn cpu_s() -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after_name = stat
        .rsplit(") ")
        .next()
        .ok_or("no process name in /proc/self/stat")?;
    let ticks: Vec<f64> = after_name
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

pub fn peak_mib() -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("VmHWM:"))
        .ok_or("no VmHWM in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
