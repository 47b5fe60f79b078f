//! What a model makes of a text as a whole: the mean of its last states, read piece by piece, so that other work on the CPU gets its turns.

use std::sync::Arc;

use half::bf16;

use super::model::Document;
use super::{GenerateError, TOKENS_PER_STEP, check_document};
use crate::cpu::element::Precision;
use crate::cpu::pool::Pool;
use crate::lora::{Adapter, Generated};
use crate::model::Decoder;
use crate::weights::BaseModel;

/// A text that is being read, on the CPU.
pub struct Embedding {
    base: Arc<BaseModel>,
    adapter: Option<Arc<Adapter>>,
    tokens: Vec<u32>,
    reader: Reader,
    /// (D), of the tokens read so far.
    sum: Vec<f64>,
}

/// What it is computed in.
enum Reader {
    Fp32(Decoder<f32>, Document),
    Bf16(Decoder<bf16>, Document),
}

impl Embedding {
    /// Begins to read at least one token; [`BaseModel::generation_precision`] says which precision is right for a base.
    /// Errors: `BadInput` for no tokens or too many, tokens outside the vocabulary or an adapter of another model; `OutOfMemory`.
    pub fn new(
        base: Arc<BaseModel>,
        adapter: Option<Arc<Adapter>>,
        tokens: Vec<u32>,
        precision: Precision,
    ) -> Result<Self, GenerateError> {
        let config = base.config();
        check_document(config, &tokens, adapter.as_deref())?;
        if tokens.is_empty() {
            let reason = "a text without tokens has no embedding";
            return Err(GenerateError::BadInput(reason.to_owned()));
        }
        let reader = match precision {
            Precision::Fp32 => {
                let document = Document::new::<f32>(config, tokens.len())?;
                Reader::Fp32(Decoder::default(), document)
            }
            Precision::Bf16 => {
                let document = Document::new::<bf16>(config, tokens.len())?;
                Reader::Bf16(Decoder::default(), document)
            }
        };
        Ok(Self {
            sum: vec![0.0; config.hidden_size],
            base,
            adapter,
            tokens,
            reader,
        })
    }

    /// Reads the next piece, of as many tokens as a step of generation has. After the last one: the mean over the tokens of the last
    /// layer's states after the last norm, (D), of unit length; all zero where that mean is.
    /// Errors: `BadInput` where the states are no numbers; `OutOfMemory`.
    pub fn step(&mut self, pool: &Pool) -> Result<Option<Vec<f32>>, GenerateError> {
        let (base, adapter) = (&*self.base, self.adapter.as_deref());
        let (tokens, sum) = (&self.tokens, &mut self.sum);
        let n_read = match &mut self.reader {
            Reader::Fp32(decoder, document) => {
                read(decoder, document, pool, base, adapter, tokens, sum)?
            }
            Reader::Bf16(decoder, document) => {
                read(decoder, document, pool, base, adapter, tokens, sum)?
            }
        };
        if n_read < tokens.len() {
            return Ok(None);
        }
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !length.is_finite() {
            let reason = "the states of this text are no numbers";
            return Err(GenerateError::BadInput(reason.to_owned()));
        }
        // Nothing has no direction: a token of which a model learned nothing is no failure.
        let unit = if length > 0.0 { length } else { 1.0 };
        Ok(Some(sum.iter().map(|x| (x / unit) as f32).collect()))
    }
}

/// Adds the states of the next piece to `sum`; how many tokens are read then. The mean has the direction of the sum.
fn read<E: Generated>(
    decoder: &mut Decoder<E>,
    document: &mut Document,
    pool: &Pool,
    base: &BaseModel,
    adapter: Option<&Adapter>,
    tokens: &[u32],
    sum: &mut [f64],
) -> Result<usize, GenerateError> {
    let start = document.n_read();
    let piece = &tokens[start..tokens.len().min(start + TOKENS_PER_STEP)];
    document.read(decoder, pool, base, adapter, piece)?;
    let states = decoder.normed(pool, base, piece.len())?;
    for state in states.chunks_exact(sum.len()) {
        for (sum, x) in sum.iter_mut().zip(state) {
            *sum += f64::from(x.to_f32());
        }
    }
    Ok(document.n_read())
}
