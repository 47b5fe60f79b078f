//! What an operator charges for models, as one text each.

use std::str::FromStr;

use super::value::ConfigValue;

/// The price of a model; of its tuned models too, unless they have their own. US dollars per million tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPrice {
    pub model: String,
    pub input: f64,
    /// Of a prompt's tokens those that were not computed again.
    pub cached: f64,
    pub output: f64,
    pub trained: f64,
}

impl FromStr for ModelPrice {
    type Err = ();

    /// A model's name, and then `input=`, `cached=`, `output=`, `trained=` in any order; what is absent is free, cached
    /// tokens cost what others do.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        let model = words.next().filter(|name| !name.contains('=')).ok_or(())?;
        let (mut input, mut cached, mut output, mut trained) = (None, None, None, None);
        for word in words {
            let (name, price) = word.split_once('=').ok_or(())?;
            let slot = match name {
                "input" => &mut input,
                "cached" => &mut cached,
                "output" => &mut output,
                "trained" => &mut trained,
                _ => return Err(()),
            };
            let price: f64 = price.parse().map_err(|_| ())?;
            if !(0.0..1e9).contains(&price) || slot.replace(price).is_some() {
                return Err(());
            }
        }
        Ok(Self {
            model: model.to_owned(),
            input: input.unwrap_or(0.0),
            cached: cached.or(input).unwrap_or(0.0),
            output: output.unwrap_or(0.0),
            trained: trained.unwrap_or(0.0),
        })
    }
}

impl ConfigValue for Vec<ModelPrice> {
    const EXPECTED: &'static str =
        "a list of prices, such as [\"smollm2-135m input=0.1 cached=0.05 output=0.4 trained=1.5\"]";

    fn from_text(text: &str) -> Option<Self> {
        parse(&Vec::<String>::from_text(text)?)
    }

    fn from_toml(value: &toml::Value) -> Option<Self> {
        parse(&Vec::<String>::from_toml(value)?)
    }
}

fn parse(texts: &[String]) -> Option<Vec<ModelPrice>> {
    texts.iter().map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_nonsense_is_not() {
        let price: ModelPrice = "m output=2 input=0.5".parse().unwrap();
        assert_eq!(
            (price.input, price.cached, price.output, price.trained),
            (0.5, 0.5, 2.0, 0.0)
        );
        for text in [
            "",
            "input=1",
            "m input",
            "m input=x",
            "m input=-1",
            "m input=1 input=2",
            "m in=1",
            "m input=inf",
        ] {
            assert!(text.parse::<ModelPrice>().is_err(), "{text}");
        }
    }
}
