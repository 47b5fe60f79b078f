//! Exports a model for `tests/parity/check_merged.py` and `check_gguf.py`:
//! `export merged BASE ADAPTER OUT_DIR` or `export gguf BASE ADAPTER OUT_FILE f32|f16|bf16|q8_0`; ADAPTER `-` is none.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use engine::config::ModelConfig;
use engine::export::{FileType, Gguf, MAX_SHARD_BYTES, Merged};
use engine::lora::Adapter;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["merged", base, adapter, out] => merged(base.as_ref(), adapter, out.as_ref()),
        ["gguf", base, adapter, out, kind] => gguf(base.as_ref(), adapter, out.as_ref(), kind),
        _ => Err("export merged BASE ADAPTER OUT_DIR | export gguf BASE ADAPTER OUT TYPE".into()),
    }
}

fn merged(base: &Path, adapter: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let merged = Merged::new(base, read(base, adapter)?, MAX_SHARD_BYTES)?;
    std::fs::create_dir_all(out)?;
    for (i, (name, size_bytes)) in merged.files().enumerate() {
        let mut file = BufWriter::new(File::create(out.join(name))?);
        merged.write(i, &mut file)?;
        file.flush()?;
        println!("{name}: {size_bytes} bytes");
    }
    Ok(())
}

fn gguf(base: &Path, adapter: &str, out: &Path, kind: &str) -> Result<(), Box<dyn Error>> {
    let file_type = match kind {
        "f32" => FileType::F32,
        "f16" => FileType::F16,
        "bf16" => FileType::Bf16,
        "q8_0" => FileType::Q8_0,
        other => return Err(format!("unknown type {other}").into()),
    };
    let no_text = [("tokenizer.ggml.model", "no_vocab")].map(|(key, value)| {
        (
            key.to_owned(),
            engine::export::Value::String(value.to_owned()),
        )
    });
    let gguf = Gguf::new(
        base,
        read(base, adapter)?,
        file_type,
        "export",
        no_text.to_vec(),
    )?;
    let mut file = BufWriter::new(File::create(out)?);
    gguf.write(&mut file)?;
    file.flush()?;
    println!("{} bytes", gguf.size_bytes());
    Ok(())
}

fn read(base: &Path, adapter: &str) -> Result<Option<Arc<Adapter>>, Box<dyn Error>> {
    if adapter == "-" {
        return Ok(None);
    }
    let dir = Path::new(adapter);
    let config = std::fs::read_to_string(dir.join("adapter_config.json"))?;
    let weights = std::fs::read(dir.join("adapter_model.safetensors"))?;
    let adapter = Adapter::from_peft(&config, &weights, &ModelConfig::from_dir(base)?)?;
    Ok(Some(Arc::new(adapter)))
}
