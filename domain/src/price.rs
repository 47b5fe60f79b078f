//! What the operator charges: the one place where tokens become an amount.

use std::str::FromStr;

use crate::usage::TokenUsage;

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

/// Tokens of one kind that answers took, and their price.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Item {
    /// As a line item of costs ends.
    pub name: &'static str,
    pub n_tokens: u64,
    /// US dollars per million tokens.
    pub price: f64,
}

impl Item {
    /// US dollars.
    pub fn amount(&self) -> f64 {
        amount_of(self.n_tokens, self.price)
    }
}

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

/// An amount of US dollars as people write it: to the cent, or, below one, to the first digits that are not 0.
pub fn usd(amount: f64) -> String {
    if amount == 0.0 {
        // Nothing summed up is -0.0.
        return "$0.00".to_owned();
    }
    if amount >= 0.01 {
        return format!("${amount:.2}");
    }
    format!("${amount:.6}").trim_end_matches('0').to_owned()
}

/// What a model's answers took, by what is charged apart; without tokens there is no item.
pub fn served(
    prices: &[ModelPrice],
    model: &str,
    tokens: TokenUsage,
) -> impl Iterator<Item = Item> + use<> {
    let own = price(prices, model);
    let computed = tokens.prompt_tokens.saturating_sub(tokens.cached_tokens);
    let items = [
        ("input", computed, own.map(|p| p.input)),
        ("cached input", tokens.cached_tokens, own.map(|p| p.cached)),
        ("output", tokens.completion_tokens, own.map(|p| p.output)),
    ];
    let items = items.map(|(name, n_tokens, price)| Item {
        name,
        n_tokens,
        price: price.unwrap_or(0.0),
    });
    items.into_iter().filter(|item| item.n_tokens > 0)
}

/// What training on a base model costs.
pub fn trained(prices: &[ModelPrice], base_model: &str, n_tokens: u64) -> Item {
    Item {
        name: "training",
        n_tokens,
        price: price(prices, base_model).map_or(0.0, |p| p.trained),
    }
}

/// What a project has taken in some time, and what its unfinished jobs will have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spending {
    /// Answers, by the model's own name.
    pub served: Vec<(String, TokenUsage)>,
    /// Trainings that succeeded.
    pub trained: Vec<Trained>,
    /// Jobs that were found good and have not ended, whenever they were made.
    pub reserved: Vec<Trained>,
}

/// Tokens that were, or will be, trained on a base model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    pub base_model: String,
    pub n_tokens: u64,
}

/// A [`Spending`] in US dollars.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spent {
    pub taken: f64,
    pub reserved: f64,
}

impl Spent {
    pub fn total(self) -> f64 {
        self.taken + self.reserved
    }
}

impl Spending {
    pub fn priced(&self, prices: &[ModelPrice]) -> Spent {
        let of_jobs = |jobs: &[Trained]| -> f64 {
            let items = jobs.iter();
            let items = items.map(|job| trained(prices, &job.base_model, job.n_tokens));
            items.map(|item| item.amount()).sum()
        };
        let of_answers = self.served.iter();
        let of_answers = of_answers.flat_map(|(model, tokens)| served(prices, model, *tokens));
        let of_answers: f64 = of_answers.map(|item| item.amount()).sum();
        Spent {
            taken: of_answers + of_jobs(&self.trained),
            reserved: of_jobs(&self.reserved),
        }
    }
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

    #[test]
    fn all_that_was_taken_and_is_reserved_costs_what_its_model_does() {
        let prices = ["m input=1 cached=0.5 output=2 trained=10", "n trained=4"];
        let prices: Vec<ModelPrice> = prices.iter().map(|text| text.parse().unwrap()).collect();
        let tokens = TokenUsage {
            prompt_tokens: 3_000_000,
            cached_tokens: 1_000_000,
            completion_tokens: 500_000,
        };
        let trained = |base_model: &str, n_tokens| Trained {
            base_model: base_model.to_owned(),
            n_tokens,
        };
        let spending = Spending {
            served: vec![
                ("ft:m:org::1".to_owned(), tokens),
                ("free".to_owned(), tokens),
            ],
            trained: vec![trained("m", 100_000)],
            reserved: vec![trained("n", 250_000), trained("free", 9)],
        };
        // 2 + 0.5 + 1 for answers, 1 for training; 1 is reserved.
        let spent = Spent {
            taken: 4.5,
            reserved: 1.0,
        };
        assert_eq!(spending.priced(&prices), spent);
        assert_eq!(spent.total(), 5.5);
        assert_eq!(Spending::default().priced(&prices), Spent::default());
    }

    #[test]
    fn amounts_are_written_as_people_do() {
        let cases = [
            (0.0, "$0.00"),
            (12.5, "$12.50"),
            (0.01, "$0.01"),
            (0.0042, "$0.0042"),
        ];
        for (amount, written) in cases {
            assert_eq!(usd(amount), written);
        }
    }
}
