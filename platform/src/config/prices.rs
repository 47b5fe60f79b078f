//! What an operator charges for models, as one text each.

pub use domain::price::ModelPrice;

use super::value::ConfigValue;

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
