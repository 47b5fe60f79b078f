//! What the operator charges: the one place where tokens become an amount.

use platform::config::ModelPrice;

/// A model's own price, or that of the base in its name.
pub fn price<'a>(prices: &'a [ModelPrice], model: &str) -> Option<&'a ModelPrice> {
    let named = |name: &str| prices.iter().find(|price| price.model == name);
    named(model).or_else(|| {
        let base = model.strip_prefix("ft:")?.split(':').next()?;
        named(base)
    })
}

/// US dollars, at a price per million tokens.
pub fn amount_of(n_tokens: u64, price: f64) -> f64 {
    n_tokens as f64 * price / 1e6
}
